"""Distillation as a ``LightningModule``. Needs ``pip install kdplug[lightning]``."""

from __future__ import annotations

from kdplug.integrations.lightning.module import DistillationModule

__all__ = ["DistillationModule"]
