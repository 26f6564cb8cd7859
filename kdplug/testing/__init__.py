"""Test kit for plugin authors: tests that every entry of a kind must pass, and temporary installs. Needs pytest.

Nothing in kdplug imports it. Its names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdplug.testing.codec.laws import CodecLaws
    from kdplug.testing.entry.balancer import BalancerLaws
    from kdplug.testing.entry.evaluator import EvaluatorLaws
    from kdplug.testing.entry.layer_map import LayerMapLaws
    from kdplug.testing.entry.projection import ProjectionLaws
    from kdplug.testing.entry.scheduler import SchedulerLaws
    from kdplug.testing.entry.student_transform import StudentTransformLaws
    from kdplug.testing.entry.teacher import TeacherLaws
    from kdplug.testing.entry.teacher_combiner import TeacherCombinerLaws
    from kdplug.testing.entry.teacher_update import TeacherUpdateLaws
    from kdplug.testing.law import broken_laws, excluded_laws, law_names
    from kdplug.testing.loss.laws import LossLaws
    from kdplug.testing.task.laws import TaskLaws
    from kdplug.testing.temporary_site import PluginSite, isolated_plugins, plugin_site, write_plugin_site

__all__ = [
    "BalancerLaws",
    "CodecLaws",
    "EvaluatorLaws",
    "LayerMapLaws",
    "LossLaws",
    "PluginSite",
    "ProjectionLaws",
    "SchedulerLaws",
    "StudentTransformLaws",
    "TaskLaws",
    "TeacherCombinerLaws",
    "TeacherLaws",
    "TeacherUpdateLaws",
    "broken_laws",
    "excluded_laws",
    "isolated_plugins",
    "law_names",
    "plugin_site",
    "write_plugin_site",
]

_MODULES = {
    "codec.laws": ("CodecLaws",),
    "temporary_site": (
        "PluginSite",
        "isolated_plugins",
        "plugin_site",
        "write_plugin_site",
    ),
    "law": (
        "broken_laws",
        "excluded_laws",
        "law_names",
    ),
    "entry.evaluator": ("EvaluatorLaws",),
    "entry.student_transform": ("StudentTransformLaws",),
    "entry.balancer": ("BalancerLaws",),
    "entry.layer_map": ("LayerMapLaws",),
    "loss.laws": ("LossLaws",),
    "entry.projection": ("ProjectionLaws",),
    "entry.scheduler": ("SchedulerLaws",),
    "task.laws": ("TaskLaws",),
    "entry.teacher": ("TeacherLaws",),
    "entry.teacher_combiner": ("TeacherCombinerLaws",),
    "entry.teacher_update": ("TeacherUpdateLaws",),
}
_WHERE = {name: f"kdplug.testing.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kdplug.testing' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
