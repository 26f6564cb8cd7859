"""Acting hooks: those of the plugins that a config names under ``plugins.hooks``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdplug.contracts.life_cycle import HasState
from kdplug.errors import KdplugError, PluginError, SignatureError, did_you_mean
from kdplug.host.active import active, implementations
from kdplug.host.host import ACTING, LIFE_CYCLE, HookPlugin, PluginWarning
from kdplug.host.isolation.plugin_code import described, is_first_process, run_plugin_code
from kdplug.host.kind import HOOK_GROUP
from kdplug.host.name import fold_distribution
from kdplug.host.run_view import ActingRun, ObservedReport

if TYPE_CHECKING:
    from kdplug.contracts.life_cycle import ReportView

_FIELD = "plugins.hooks"
_HOOKS = (*LIFE_CYCLE, *ACTING)


def check_offers_hooks(name: str) -> str:
    """Return the name of a distribution as it spells it itself, if it is installed and offers hooks. Nothing is imported.

    Raises: ``PluginError``.
    """
    host = active()
    by_name = {fold_distribution(dist.name): dist for dist in host.dists}
    dist = by_name.get(fold_distribution(name))
    offering = [one.name for one in host.dists if any(point.group == HOOK_GROUP for point in one.entry_points)]
    listed = f" Plugins with hooks: {', '.join(offering)}" if offering else " No installed plugin has hooks"
    if dist is None:
        raise PluginError(f"no plugin {name!r} is installed.{did_you_mean(name, offering) or listed}")
    if dist in host.left_out:
        raise PluginError(f"{dist.name} {dist.version} is not used: {host.reason(dist)}")
    if dist.name not in offering:
        raise PluginError(f"{dist.name} {dist.version} has no hooks (no entry point in {HOOK_GROUP}).{listed}")
    return dist.name


@dataclass(slots=True)
class _Plugin:
    """A named plugin: its own copy of the object with the hooks, or the module, and the view of the run that it gets."""

    name: str
    dist: str
    target: Any
    at_start: Mapping[str, Any] = field(default_factory=dict)
    view: ActingRun | None = None
    is_warned: bool = False

    @classmethod
    def of(cls, plugin: HookPlugin) -> _Plugin:
        """Return a plugin in its initial state: a run does not see what an earlier one left in the object.

        Raises: ``PluginError`` if the object cannot be copied; ``SignatureError`` if it saves state but cannot load it.
        """
        found = plugin.found
        if not isinstance(found, ModuleType):
            done = run_plugin_code(
                partial(copy.deepcopy, found), f"copying {plugin.qualified!r}", plugin.dist.name, "build"
            )
            if done.error is not None:
                raise PluginError(
                    f"the object {plugin.target} of {plugin.dist.name} cannot be copied, as each run does: "
                    f"{described(done.error)}. Create what cannot be copied in kdplug_run_start",
                    field=_FIELD,
                ) from done.error
            found = done.value
        methods = [name for name in ("state_dict", "load_state_dict") if callable(getattr(found, name, None))]
        if len(methods) == 1:
            raise SignatureError(
                f"{plugin.target} of {plugin.dist.name} has {methods[0]}, but its state is saved only with both state_dict "
                "and load_state_dict",
                field=_FIELD,
            )
        return cls(plugin.qualified, plugin.dist.name, found, dict(getattr(found, "__dict__", {})))

    @property
    def has_state(self) -> bool:
        return isinstance(self.target, HasState)

    @property
    def unsaved(self) -> list[str]:
        """The attributes that hooks of an object without ``state_dict`` have assigned."""
        if self.has_state or isinstance(self.target, ModuleType):
            return []
        now = getattr(self.target, "__dict__", {})
        return sorted(name for name in now if now[name] is not self.at_start.get(name, self))


class Acting:
    """Calls the hooks of the distributions ``names``, which may change the run. An error in one ends the run.

    An object with ``state_dict`` and ``load_state_dict`` is saved and resumed. Random numbers that hooks draw are part of
    the run's.

    Raises: ``PluginError`` if a plugin cannot be imported or has no hook that a run calls; ``SignatureError`` for an
    object that only saves or only loads its state.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._host = active()
        self._host.load_hooks()
        self._plugins: dict[str, _Plugin] = {}
        for name in names:
            self._admit(name)
        self._calls = {
            name: [
                (self._plugins[one.plugin_name], one.argnames)
                for one in implementations(self._host, name)
                if one.plugin_name in self._plugins and not (one.wrapper or one.hookwrapper)
            ]
            for name in _HOOKS
        }

    def _admit(self, name: str) -> None:
        own = [one for one in self._host.hook_plugins if fold_distribution(one.dist.name) == fold_distribution(name)]
        for plugin in own:
            if plugin.error is not None:
                raise PluginError(
                    f"{plugin.qualified!r} ({plugin.target}) failed to load: {described(plugin.error)}. Fix it, or remove "
                    f"{name!r} from plugins.hooks",
                    field=_FIELD,
                ) from plugin.error
            if any(callable(getattr(plugin.found, hook, None)) for hook in _HOOKS):
                self._plugins[plugin.qualified] = _Plugin.of(plugin)
        if not any(one.qualified in self._plugins for one in own):
            raise PluginError(
                f"{name!r} implements none of the hooks of a run ({', '.join(_HOOKS)}), so naming it has no effect. Remove "
                "it from plugins.hooks",
                field=_FIELD,
            )

    def run_start(self, run: Any) -> None:
        for plugin in self._plugins.values():
            plugin.view = ActingRun(run, plugin.name)
        self._call("kdplug_run_start")

    def step_start(self, run: Any) -> None:  # noqa: ARG002  an observer gets the run
        self._call("kdplug_step_start")

    def step_end(self, run: Any, step: int, report: ReportView) -> None:  # noqa: ARG002
        if self._calls["kdplug_step_end"]:
            self._call("kdplug_step_end", step=step, report=ObservedReport(report))

    def evaluated(self, run: Any, figures: Mapping[str, float]) -> None:  # noqa: ARG002
        self._call("kdplug_evaluated", figures=dict(figures))

    def run_end(self, run: Any, error: BaseException | None) -> None:  # noqa: ARG002
        try:
            self._call("kdplug_run_end", error=error)
        except PluginError as raised:
            if error is None:
                raise
            warnings.warn(str(raised), PluginWarning, stacklevel=2)  # the error that ended the run matters more

    def state(self) -> dict[str, Any]:
        """Return the state of each plugin that has one. Warn about an object that has changed and has none."""
        found = {}
        for name, plugin in self._plugins.items():
            if plugin.has_state:
                found[name] = self._run(plugin, "state_dict", plugin.target.state_dict)
            elif not plugin.is_warned and (names := plugin.unsaved):
                plugin.is_warned = True
                if is_first_process():
                    warnings.warn(
                        f"plugin {name!r} keeps {', '.join(names)}, which checkpoints do not hold, so a resumed run starts "
                        "without it. Define state_dict and load_state_dict",
                        PluginWarning,
                        stacklevel=2,
                    )
        return found

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned, after ``run_start``."""
        for name, plugin in self._plugins.items():
            if plugin.has_state and name in saved:
                self._run(plugin, "load_state_dict", partial(plugin.target.load_state_dict, saved[name]))

    def _call(self, hook: str, **values: Any) -> None:
        for plugin, arguments in self._calls[hook]:
            given = {"run": plugin.view, **values}
            self._run(plugin, hook, partial(getattr(plugin.target, hook), *(given[name] for name in arguments)))

    def _run(self, plugin: _Plugin, name: str, call: Callable[[], Any]) -> Any:
        done = run_plugin_code(call, f"{name} of plugin {plugin.name!r}", plugin.dist, "build")
        if isinstance(done.error, KdplugError):
            done.error.add_note(f"raised in {name} of plugin {plugin.name!r}")
            raise done.error
        if done.error is not None:
            raise PluginError(
                f"plugin {plugin.name!r} raised in {name}: {described(done.error)}. Fix it, or remove {plugin.dist!r} from "
                "plugins.hooks",
                field=_FIELD,
            ) from done.error
        return done.value
