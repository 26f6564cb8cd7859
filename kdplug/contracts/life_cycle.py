"""Views of a run that life-cycle hooks receive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


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
