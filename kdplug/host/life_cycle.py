"""The life-cycle hooks of every plugin as one observer of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

from pluggy import HookImpl

from kdplug.host.active import active
from kdplug.host.plugin_code import described, run_plugin_code


class LifeCycle:
    """Calls the hook implementations of the plugins in force. One that raises is reported once and then left alone.

    Raises: ``PluginError`` under ``KDPLUG_STRICT=1``.
    """

    def __init__(self) -> None:
        self._host = active()
        self._host.load_hooks()
        self._silenced: set[str] = set()
        self._reported: set[tuple[str, str]] = set()
        hook = self._host.manager.hook
        self._calls = {
            name: sorted(getattr(hook, name).get_hookimpls(), key=_turn)
            for name in ("kdplug_run_start", "kdplug_step_end", "kdplug_run_end")
        }

    def run_start(self, run: Any) -> None:
        self._tell("kdplug_run_start", run=run)

    def step_end(self, run: Any, step: int, report: Any) -> None:
        if self._calls["kdplug_step_end"]:  # most often nobody listens, and this is asked at each step
            self._tell("kdplug_step_end", run=run, step=step, report=report)

    def run_end(self, run: Any, error: BaseException | None) -> None:
        self._tell("kdplug_run_end", run=run, error=error)

    def _tell(self, name: str, **values: Any) -> None:
        for implementation in self._calls[name]:
            plugin = implementation.plugin_name
            if plugin in self._silenced or implementation.wrapper or implementation.hookwrapper:
                continue
            call = partial(implementation.function, *(values[argument] for argument in implementation.argnames))
            dist = plugin.partition(":")[0]
            done = run_plugin_code(call, f"{name} of plugin {plugin!r}", dist, "hook", self._report_once)
            if done.error is not None:
                self._silenced.add(plugin)
                self._host.report(
                    f"plugin {plugin!r} raised in {name} and is not called again in this run: {described(done.error)}"
                )

    def _report_once(self, dist: str, doing: str, changed: str) -> None:
        if (doing, changed) not in self._reported:
            self._reported.add((doing, changed))
            self._host.report_side_effect(dist, doing, changed)


def _turn(implementation: HookImpl) -> tuple[bool, bool, str]:
    """The order in which plugins are told: those marked ``tryfirst``, then by name, then those marked ``trylast``."""
    return not implementation.tryfirst, implementation.trylast, implementation.plugin_name
