"""Notify the observers of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kdplug.errors import PluginError

if TYPE_CHECKING:
    from kdplug.engine.run import Run
    from kdplug.objective.report import LossReport


class RunObserver(Protocol):
    """An observer of runs. Return values are ignored."""

    def run_start(self, run: Run) -> None:
        """Called after the run is set up and before the first step."""

    def step_end(self, run: Run, step: int, report: LossReport) -> None:
        """Called after ``step`` optimizer steps; ``report`` is the loss of the last one."""

    def run_end(self, run: Run, error: BaseException | None) -> None:
        """Called when the run is over; ``error`` is the exception that ended it, or ``None`` if it completed."""


class Actor(RunObserver, Protocol):
    """An observer that may change the run. It has state, which checkpoints hold."""

    def step_start(self, run: Run) -> None:
        """Called before each optimizer step."""

    def evaluated(self, run: Run, figures: Mapping[str, float]) -> None:
        """Called after each evaluation."""

    def state(self) -> dict[str, Any]:
        """Return plain data and tensors."""

    def load_state(self, saved: Mapping[str, Any], /) -> None:
        """Restore what ``state`` returned. Called after ``run_start`` of a resumed run."""


class Callbacks:
    """Calls every observer. An exception in one is reported once per event.

    It ends the run only if ``strict``. A ``PluginError`` always does: the host raises it only in strict mode.
    """

    def __init__(self, observers: Iterable[RunObserver] = (), *, strict: bool = False) -> None:
        self._observers = tuple(observers)
        self._strict = strict
        self._reported: set[tuple[int, str]] = set()

    def run_start(self, run: Run) -> None:
        for observer in self._observers:
            try:
                observer.run_start(run)
            except Exception as error:
                self._report(observer, "run_start", error)

    def step_end(self, run: Run, step: int, report: LossReport) -> None:
        for observer in self._observers:
            try:
                observer.step_end(run, step, report)
            except Exception as error:
                self._report(observer, "step_end", error)

    def run_end(self, run: Run, error: BaseException | None) -> None:
        for observer in self._observers:
            try:
                observer.run_end(run, error)
            except Exception as raised:
                self._report(observer, "run_end", raised)

    def _report(self, observer: RunObserver, event: str, error: Exception) -> None:
        if self._strict or isinstance(error, PluginError):
            raise error
        if (id(observer), event) not in self._reported:
            self._reported.add((id(observer), event))
            warnings.warn(
                f"{type(observer).__name__}.{event} raised {type(error).__name__}, and the run continues: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
