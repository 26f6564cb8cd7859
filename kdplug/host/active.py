"""The set of plugins that this process uses, the calls of their hooks, and a way to replace the set in tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from kdplug.host.host import ACTING, LIFE_CYCLE, Host
from kdplug.host.isolation.plugin_code import described, report_side_effects, run_plugin_code
from kdplug.host.metadata import Distribution, scan
from kdplug.host.name import fold_distribution
from kdplug.host.plugin_filter import PluginFilter
from kdplug.host.run_view import ObservedReport, ObservedRun

if TYPE_CHECKING:
    from kdplug.contracts.life_cycle import ReportView, RunView


class LifeCycle:
    """Calls the observing hooks of the active plugins, except those of the distributions ``acting``, which act.

    A plugin with a hook that acts is not called at all unless a config names it. A plugin that raises is reported once and not called again.

    Raises: ``PluginError`` under ``KDPLUG_STRICT=1``.
    """

    def __init__(self, acting: Iterable[str] = ()) -> None:
        self._host = active()
        self._host.load_hooks()
        self._seen: tuple[RunView, ObservedRun] | None = None
        self._silenced: set[str] = set()
        self._reported: set[tuple[str, str]] = set()
        named = set(map(fold_distribution, acting))
        acts = {one.plugin_name for name in ACTING for one in implementations(self._host, name)}
        self._calls = {
            name: [
                one
                for one in implementations(self._host, name)
                if one.plugin_name not in acts and fold_distribution(dist_of(one)) not in named
            ]
            for name in LIFE_CYCLE
        }

    def run_start(self, run: RunView) -> None:
        self._tell("kdplug_run_start", run=self._view(run))

    def step_end(self, run: RunView, step: int, report: ReportView) -> None:
        if self._calls["kdplug_step_end"]:  # runs at each step, and most runs have no such hook
            self._tell("kdplug_step_end", run=self._view(run), step=step, report=ObservedReport(report))

    def run_end(self, run: RunView, error: BaseException | None) -> None:
        self._tell("kdplug_run_end", run=self._view(run), error=error)

    def _view(self, run: RunView) -> ObservedRun:
        """Return the view of ``run``: the same object from start to end, since hooks store data under its ``id``."""
        if self._seen is None or self._seen[0] is not run:
            self._seen = (run, ObservedRun(run))
        return self._seen[1]

    def _tell(self, name: str, **values: Any) -> None:
        for implementation in self._calls[name]:
            plugin = implementation.plugin_name
            if plugin in self._silenced or implementation.wrapper or implementation.hookwrapper:
                continue
            call = partial(implementation.function, *(values[argument] for argument in implementation.argnames))
            dist = dist_of(implementation)
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


def implementations(host: Host, name: str) -> list[HookImpl]:
    """Return the implementations of a hook in the order of calls: ``tryfirst`` first, ``trylast`` last, then by name."""
    found = getattr(host.manager.hook, name).get_hookimpls()
    return sorted(found, key=lambda one: (not one.tryfirst, one.trylast, one.plugin_name))


def dist_of(implementation: HookImpl) -> str:
    """Return the distribution that offers a hook."""
    return implementation.plugin_name.partition(":")[0]


_active: list[Host] = []


def read_installed() -> None:
    """Scan the installed plugins once. Problems are reported later, by the first call of ``active``.

    Raises: ``PluginError`` if ``KDPLUG_PLUGINS`` is invalid.
    """
    if not _active:
        _active.append(Host(scan(), PluginFilter.from_environment()))


def active() -> Host:
    """Return the active host. Its problems are reported once, or raised at each call under ``KDPLUG_STRICT=1``."""
    read_installed()
    _active[-1].report_problems()
    return _active[-1]


@contextmanager
def isolated(dists: Iterable[Distribution] = (), plugin_filter: PluginFilter | None = None) -> Iterator[Host]:
    """Restrict the registries to ``dists`` within a ``with`` block."""
    host = Host(dists, plugin_filter)
    host.report_problems()
    read_installed()
    _active.append(host)
    try:
        yield host
    finally:
        _active.remove(host)


report_side_effects(lambda dist, doing, changed: active().report_side_effect(dist, doing, changed))
