"""The set of plugins that this process uses, the calls of their hooks, and a way to replace the set in tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from kdplug.host.host import Host
from kdplug.host.isolation.plugin_code import described, report_side_effects, run_plugin_code
from kdplug.host.metadata import Distribution, scan
from kdplug.host.plugin_filter import PluginFilter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from kdplug.contracts.life_cycle import ReportView, RunView, TermView


class _Run:
    """Read-only view of a run for hooks (``contracts.life_cycle.RunView``)."""

    def __init__(self, run: RunView) -> None:
        self.__run = run

    @property
    def step(self) -> int:
        return self.__run.step

    @property
    def total_steps(self) -> int:
        return self.__run.total_steps

    @property
    def progress(self) -> float:
        return self.__run.progress

    @property
    def output_dir(self) -> Path:
        return self.__run.output_dir

    @property
    def is_main(self) -> bool:
        return self.__run.is_main


class _Term:
    """View of a term for hooks. Its tensor is a copy, since the run has yet to log the original."""

    def __init__(self, term: TermView) -> None:
        self.__term = term

    @property
    def value(self) -> Tensor:
        return self.__term.value.detach().clone()

    @property
    def weight(self) -> float:
        return self.__term.weight


class _Report:
    """View of a step's loss for hooks; tensors are copies."""

    def __init__(self, report: ReportView) -> None:
        self.__report = report

    @property
    def total(self) -> Tensor:
        return self.__report.total.detach().clone()

    @property
    def terms(self) -> Mapping[str, TermView]:
        return {name: _Term(term) for name, term in self.__report.terms.items()}


class LifeCycle:
    """Calls the hooks of the active plugins. A plugin that raises is reported once and not called again.

    Raises: ``PluginError`` under ``KDPLUG_STRICT=1``.
    """

    def __init__(self) -> None:
        self._host = active()
        self._host.load_hooks()
        self._seen: tuple[RunView, _Run] | None = None
        self._silenced: set[str] = set()
        self._reported: set[tuple[str, str]] = set()
        hook = self._host.manager.hook
        self._calls = {
            name: sorted(getattr(hook, name).get_hookimpls(), key=_turn)
            for name in ("kdplug_run_start", "kdplug_step_end", "kdplug_run_end")
        }

    def run_start(self, run: RunView) -> None:
        self._tell("kdplug_run_start", run=self._view(run))

    def step_end(self, run: RunView, step: int, report: ReportView) -> None:
        if self._calls["kdplug_step_end"]:  # runs at each step, and most runs have no such hook
            self._tell("kdplug_step_end", run=self._view(run), step=step, report=_Report(report))

    def run_end(self, run: RunView, error: BaseException | None) -> None:
        self._tell("kdplug_run_end", run=self._view(run), error=error)

    def _view(self, run: RunView) -> _Run:
        """Return the view of ``run``: the same object from start to end, since hooks store data under its ``id``."""
        if self._seen is None or self._seen[0] is not run:
            self._seen = (run, _Run(run))
        return self._seen[1]

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
    """Return the sort key of a hook call: ``tryfirst`` first, ``trylast`` last, by plugin name within each group."""
    return not implementation.tryfirst, implementation.trylast, implementation.plugin_name


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
