"""The plugin author's kit: laws for entries, plugins on a temporary path, registries of one's own. Needs pytest.

Nothing in kdplug imports it. Everything here is imported when it is first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdplug.testing.codec_laws import CodecLaws
    from kdplug.testing.isolation import isolated_plugins
    from kdplug.testing.law import broken_laws, law_names
    from kdplug.testing.layer_map_laws import LayerMapLaws
    from kdplug.testing.loss_laws import LossLaws
    from kdplug.testing.projection_laws import ProjectionLaws
    from kdplug.testing.scheduler_laws import SchedulerLaws
    from kdplug.testing.task_laws import TaskLaws
    from kdplug.testing.teacher_combiner_laws import TeacherCombinerLaws
    from kdplug.testing.temporary_site import PluginSite, plugin_site, write_plugin_site

__all__ = [
    "CodecLaws",
    "LayerMapLaws",
    "LossLaws",
    "PluginSite",
    "ProjectionLaws",
    "SchedulerLaws",
    "TaskLaws",
    "TeacherCombinerLaws",
    "broken_laws",
    "isolated_plugins",
    "law_names",
    "plugin_site",
    "write_plugin_site",
]

_MODULES = {
    "codec_laws": ("CodecLaws",),
    "isolation": ("isolated_plugins",),
    "law": ("broken_laws", "law_names"),
    "layer_map_laws": ("LayerMapLaws",),
    "loss_laws": ("LossLaws",),
    "temporary_site": ("PluginSite", "plugin_site", "write_plugin_site"),
    "projection_laws": ("ProjectionLaws",),
    "scheduler_laws": ("SchedulerLaws",),
    "task_laws": ("TaskLaws",),
    "teacher_combiner_laws": ("TeacherCombinerLaws",),
}
_WHERE = {name: f"kdplug.testing.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kdplug.testing' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
