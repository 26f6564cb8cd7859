"""TextBrewer's API on kdplug's registries: ``import kdplug.integrations.textbrewer as textbrewer``.

Existing scripts keep their results: the training loop follows TextBrewer's, while losses, projections and schedulers
come from kdplug's registries, so any installed plugin can be named. ``docs/how-to/move-from-textbrewer.md`` lists kept
quirks and fixed defects. New scripts should use ``kdplug`` directly.
"""

from __future__ import annotations

from kdplug.integrations.textbrewer import (
    compatibility,
    configurations,
    data_utils,
    distiller_basic,
    distiller_general,
    distiller_multitask,
    distiller_multiteacher,
    distiller_train,
    distiller_utils,
    distillers,
    losses,
    presets,
    projections,
    schedulers,
    utils,
)
from kdplug.integrations.textbrewer.alias import install, uninstall
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.distillers import (
    BasicDistiller,
    BasicTrainer,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
)
from kdplug.integrations.textbrewer.presets import (
    ADAPTOR_KEYS,
    FEATURES,
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    register_new,
)

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "BasicDistiller",
    "BasicTrainer",
    "DistillationConfig",
    "Distillers",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "TrainingConfig",
    "compatibility",
    "configurations",
    "data_utils",
    "distiller_basic",
    "distiller_general",
    "distiller_multitask",
    "distiller_multiteacher",
    "distiller_train",
    "distiller_utils",
    "distillers",
    "install",
    "losses",
    "presets",
    "projections",
    "register_new",
    "schedulers",
    "uninstall",
    "utils",
]

__version__ = "0.2.1.post1"
"""The TextBrewer release whose API this package implements."""

Distillers = {
    "Basic": BasicDistiller,
    "General": GeneralDistiller,
    "MultiTeacher": MultiTeacherDistiller,
    "MultiTask": MultiTaskDistiller,
    "Train": BasicTrainer,
}
