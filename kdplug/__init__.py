"""Knowledge distillation for PyTorch in which every loss, projection and schedule is a plugin.

``import kdplug`` lists the installed plugins but imports none of them, nor torch, nor pydantic. Other public names are
imported on first access.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdplug.contracts.version import PLUGIN_API
from kdplug.contracts.version import VERSION as _VERSION
from kdplug.contracts.vocabulary import ADAPTOR_KEYS, FEATURES
from kdplug.errors import PluginError
from kdplug.host.active import read_installed as _read_installed
from kdplug.host.hookspec import hookimpl
from kdplug.host.registry import (
    balancers,
    cache_codecs,
    evaluators,
    layer_maps,
    losses,
    projections,
    student_transforms,
    tasks,
    teacher_combiners,
    teacher_updates,
    teachers,
    temperature_schedulers,
    weight_schedulers,
)

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig, IntermediateMatch
    from kdplug.config.recipe import Recipe
    from kdplug.config.term import TermConfig
    from kdplug.config.training import TrainingConfig
    from kdplug.contracts.all_gather import all_gather
    from kdplug.contracts.cache_codec import CacheCodec, Encoded, Ragged
    from kdplug.contracts.factored_logits import FactoredLogits
    from kdplug.contracts.loss import (
        ClosedForm,
        LossSum,
        across_vocabularies,
        any_layers,
        closed_form,
        coarsens,
        facts,
        mean_over_items,
        sum_over_items,
        takes_numbers,
        whole_sequences,
    )
    from kdplug.contracts.outputs import Outputs
    from kdplug.contracts.sparse_logits import SparseLogits
    from kdplug.contracts.task import Prediction, Predictions, RecipeGuess, Task, new_recipe
    from kdplug.contracts.teacher import ExternalTeacher
    from kdplug.distillers.basic import BasicDistiller
    from kdplug.distillers.custom_match import CustomMatch
    from kdplug.distillers.general import GeneralDistiller
    from kdplug.distillers.multi_task import MultiTaskDistiller
    from kdplug.distillers.multi_teacher import MultiTeacherDistiller
    from kdplug.distillers.student_transforms import StudentTransforms
    from kdplug.distillers.trainer import BasicTrainer
    from kdplug.engine.checkpoint.weights import load_student
    from kdplug.engine.evaluation import Evaluation
    from kdplug.errors import (
        ConfigError,
        EntryError,
        KdplugError,
        OutputsError,
        RunError,
        SettingError,
        ShapeError,
        SignatureError,
    )
    from kdplug.evidence.verdict import Verdict, verdict
    from kdplug.host.textbrewer_maps import (
        KD_LOSS_MAP,
        MATCH_LOSS_MAP,
        PROJ_MAP,
        TEMPERATURE_SCHEDULER,
        WEIGHT_SCHEDULER,
    )
    from kdplug.host.wrapped_task import BaseTask, WrappedTask
    from kdplug.objective.objective import Objective
    from kdplug.objective.report import LossReport
    from kdplug.objective.teacher_update import TeacherUpdate
    from kdplug.recipes.run import run_recipe

__version__ = _VERSION

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PLUGIN_API",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "BaseTask",
    "BasicDistiller",
    "BasicTrainer",
    "CacheCodec",
    "ClosedForm",
    "ConfigError",
    "CustomMatch",
    "DistillationConfig",
    "Encoded",
    "EntryError",
    "Evaluation",
    "ExternalTeacher",
    "FactoredLogits",
    "GeneralDistiller",
    "IntermediateMatch",
    "KdplugError",
    "LossReport",
    "LossSum",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "Objective",
    "Outputs",
    "OutputsError",
    "PluginError",
    "Prediction",
    "Predictions",
    "Ragged",
    "Recipe",
    "RecipeGuess",
    "RunError",
    "SettingError",
    "ShapeError",
    "SignatureError",
    "SparseLogits",
    "StudentTransforms",
    "Task",
    "TeacherUpdate",
    "TermConfig",
    "TrainingConfig",
    "Verdict",
    "WrappedTask",
    "across_vocabularies",
    "all_gather",
    "any_layers",
    "balancers",
    "cache_codecs",
    "closed_form",
    "coarsens",
    "evaluators",
    "facts",
    "hookimpl",
    "layer_maps",
    "load_student",
    "losses",
    "mean_over_items",
    "new_recipe",
    "projections",
    "run_recipe",
    "student_transforms",
    "sum_over_items",
    "takes_numbers",
    "tasks",
    "teacher_combiners",
    "teacher_updates",
    "teachers",
    "temperature_schedulers",
    "verdict",
    "weight_schedulers",
    "whole_sequences",
]

_ROOMS = {
    "config.distillation": (
        "DistillationConfig",
        "IntermediateMatch",
    ),
    "config.recipe": ("Recipe",),
    "config.term": ("TermConfig",),
    "config.training": ("TrainingConfig",),
    "contracts.all_gather": ("all_gather",),
    "contracts.loss": (
        "ClosedForm",
        "LossSum",
        "across_vocabularies",
        "any_layers",
        "closed_form",
        "coarsens",
        "facts",
        "mean_over_items",
        "sum_over_items",
        "takes_numbers",
        "whole_sequences",
    ),
    "contracts.cache_codec": (
        "CacheCodec",
        "Encoded",
        "Ragged",
    ),
    "contracts.factored_logits": ("FactoredLogits",),
    "contracts.task": (
        "Prediction",
        "Predictions",
        "RecipeGuess",
        "Task",
        "new_recipe",
    ),
    "contracts.teacher": ("ExternalTeacher",),
    "contracts.outputs": ("Outputs",),
    "contracts.sparse_logits": ("SparseLogits",),
    "distillers.basic": ("BasicDistiller",),
    "distillers.custom_match": ("CustomMatch",),
    "distillers.general": ("GeneralDistiller",),
    "distillers.multi_task": ("MultiTaskDistiller",),
    "distillers.multi_teacher": ("MultiTeacherDistiller",),
    "distillers.student_transforms": ("StudentTransforms",),
    "distillers.trainer": ("BasicTrainer",),
    "engine.checkpoint.weights": ("load_student",),
    "engine.evaluation": ("Evaluation",),
    "errors": (
        "ConfigError",
        "EntryError",
        "KdplugError",
        "OutputsError",
        "RunError",
        "SettingError",
        "ShapeError",
        "SignatureError",
    ),
    "evidence.verdict": (
        "Verdict",
        "verdict",
    ),
    "host.textbrewer_maps": (
        "KD_LOSS_MAP",
        "MATCH_LOSS_MAP",
        "PROJ_MAP",
        "TEMPERATURE_SCHEDULER",
        "WEIGHT_SCHEDULER",
    ),
    "host.wrapped_task": (
        "BaseTask",
        "WrappedTask",
    ),
    "objective.objective": ("Objective",),
    "objective.report": ("LossReport",),
    "objective.teacher_update": ("TeacherUpdate",),
    "recipes.run": ("run_recipe",),
}
_WHERE = {name: f"kdplug.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kdplug' has no attribute {name!r}")
    found = getattr(import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


# The error of an invalid KDPLUG_PLUGINS is raised by the first look-up instead, where the command line reports it.
with suppress(PluginError):
    _read_installed()
