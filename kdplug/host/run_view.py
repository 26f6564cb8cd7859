"""Views of a run that hooks receive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from kdplug.errors import PluginError
from kdplug.host.isolation.plugin_code import running_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from kdplug.contracts.life_cycle import ActingRunView, ReportView, RunView, TermView


class ObservedRun:
    """Read-only view of a run (``contracts.life_cycle.RunView``)."""

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

    def __getattr__(self, name: str) -> NoReturn:
        if name not in _ACTS:
            raise AttributeError(f"a run has no attribute {name!r} for hooks")
        dist = running_plugin() or "<distribution>"
        raise PluginError(
            f"run.{name} is available only to a plugin that the config names. Add {dist} to plugins.hooks: "
            f"plugins: {{hooks: [{dist}]}}",
            field="plugins.hooks",
        )


_ACTS = ("model", "teacher", "objective", "optimizer", "stop")


class ActingRun(ObservedRun):
    """View of a run for a plugin that the config names (``contracts.life_cycle.ActingRunView``)."""

    def __init__(self, run: Any, plugin: str) -> None:
        super().__init__(run)
        self.__run: ActingRunView = run
        self.__plugin = plugin

    @property
    def model(self) -> Module:
        return self.__run.model

    @property
    def teacher(self) -> Module | None:
        return self.__run.teacher

    @property
    def objective(self) -> Module:
        return self.__run.objective

    @property
    def optimizer(self) -> Optimizer:
        return self.__run.optimizer

    def stop(self, reason: str) -> None:
        """End the run after the current step, on every process, as early stopping does."""
        if not isinstance(reason, str) or not reason.strip():
            raise PluginError(f"run.stop takes the reason as text, got {reason!r}")
        self.__run.stop(f"{reason} ({self.__plugin})")


class _Term:
    """View of a term. Its tensor is a copy, since the run has yet to log the original."""

    def __init__(self, term: TermView) -> None:
        self.__term = term

    @property
    def value(self) -> Tensor:
        return self.__term.value.detach().clone()

    @property
    def weight(self) -> float:
        return self.__term.weight


class ObservedReport:
    """View of a step's loss; tensors are copies."""

    def __init__(self, report: ReportView) -> None:
        self.__report = report

    @property
    def total(self) -> Tensor:
        return self.__report.total.detach().clone()

    @property
    def terms(self) -> Mapping[str, TermView]:
        return {name: _Term(term) for name, term in self.__report.terms.items()}
