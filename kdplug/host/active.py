"""The set of plugins in force."""

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
    """A run as hooks see it (``contracts.life_cycle.RunView``): nothing in it can change the run."""

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
    """A term as hooks see it. Its tensor is a copy: the run still has to log the original."""

    def __init__(self, term: TermView) -> None:
        self.__term = term

    @property
    def value(self) -> Tensor:
        return self.__term.value.detach().clone()

    @property
    def weight(self) -> float:
        return self.__term.weight


class _Report:
    """The loss of a step as hooks see it, in copies."""

    def __init__(self, report: ReportView) -> None:
        self.__report = report

    @property
    def total(self) -> Tensor:
        return self.__report.total.detach().clone()

    @property
    def terms(self) -> Mapping[str, TermView]:
        return {name: _Term(term) for name, term in self.__report.terms.items()}


class LifeCycle:
    """Calls the hook implementations of the plugins in force. One that raises is reported once and then left alone.

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
        if self._calls["kdplug_step_end"]:  # most often nobody listens, and this is asked at each step
            self._tell("kdplug_step_end", run=self._view(run), step=step, report=_Report(report))

    def run_end(self, run: RunView, error: BaseException | None) -> None:
        self._tell("kdplug_run_end", run=self._view(run), error=error)

    def _view(self, run: RunView) -> _Run:
        """The view of ``run``, one object from its start to its end: hooks keep what they gather by its ``id``."""
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
    """The order in which plugins are told: those marked ``tryfirst``, then by name, then those marked ``trylast``."""
    return not implementation.tryfirst, implementation.trylast, implementation.plugin_name


_active: list[Host] = []


def read_installed() -> None:
    """Scan what is installed, once. What is wrong with it is told by the first ``active``: the command line is ready then.

    Raises: ``PluginError`` where ``KDPLUG_PLUGINS`` makes no sense.
    """
    if not _active:
        _active.append(Host(scan(), PluginFilter.from_environment()))


def active() -> Host:
    """The host in force; what is wrong with it is told once, and is an error each time under ``KDPLUG_STRICT=1``."""
    read_installed()
    _active[-1].tell()
    return _active[-1]


@contextmanager
def isolated(dists: Iterable[Distribution] = (), switch: PluginFilter | None = None) -> Iterator[Host]:
    """For the time of a ``with`` block, registries that see ``dists`` and nothing else."""
    host = Host(dists, switch)
    host.tell()
    read_installed()
    _active.append(host)
    try:
        yield host
    finally:
        _active.remove(host)


report_side_effects(lambda dist, doing, changed: active().report_side_effect(dist, doing, changed))
