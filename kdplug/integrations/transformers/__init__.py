"""``transformers.Trainer`` with an objective. Needs ``pip install kdplug[transformers]``."""

from __future__ import annotations

from kdplug.integrations.transformers.trainer import DistillationTrainer

__all__ = ["DistillationTrainer"]
