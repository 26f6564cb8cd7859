"""Views of a run that life-cycle hooks receive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer


class TermView(Protocol):
    """One term of the objective: its unweighted mean and its weight."""

    @property
    def value(self) -> Tensor: ...

    @property
    def weight(self) -> float: ...


class ReportView(Protocol):
    """The loss of a step: the weighted total and each term by name."""

    @property
    def total(self) -> Tensor: ...

    @property
    def terms(self) -> Mapping[str, TermView]: ...


class RunView(Protocol):
    """The attributes of a run that observers may read.

    ``progress`` is the fraction done, in [0, 1]. ``output_dir`` is the results directory. ``is_main`` is true on the
    one process that writes and prints.
    """

    @property
    def step(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def progress(self) -> float: ...

    @property
    def output_dir(self) -> Path: ...

    @property
    def is_main(self) -> bool: ...


class ActingRunView(RunView, Protocol):
    """The attributes of a run for the hooks of a plugin that the config names under ``plugins.hooks``.

    ``model`` is the student without wrappers, ``teacher`` is ``None`` where only labels or cached outputs are used.
    ``objective`` holds the losses and projections, ``optimizer`` the parameters of both student and objective.
    """

    @property
    def model(self) -> Module: ...

    @property
    def teacher(self) -> Module | None: ...

    @property
    def objective(self) -> Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    def stop(self, reason: str) -> None:
        """End the run after the current step, on every process, as early stopping does."""


@runtime_checkable
class HasState(Protocol):
    """An acting plugin whose state is saved in checkpoints: plain data and tensors, as of torch modules and optimizers."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any: ...
