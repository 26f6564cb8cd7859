"""The five distillers."""

from __future__ import annotations

from kdplug.integrations.textbrewer.distiller_basic import BasicDistiller
from kdplug.integrations.textbrewer.distiller_general import GeneralDistiller
from kdplug.integrations.textbrewer.distiller_multitask import MultiTaskDistiller
from kdplug.integrations.textbrewer.distiller_multiteacher import MultiTeacherDistiller
from kdplug.integrations.textbrewer.distiller_train import BasicTrainer

__all__ = ["BasicDistiller", "BasicTrainer", "GeneralDistiller", "MultiTaskDistiller", "MultiTeacherDistiller"]
