"""What a life-cycle hook sees of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class TermView(Protocol):
    """One term of the objective: its mean before weighting, and its weight."""

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
    """A run as observers see it.

    ``progress`` is the share of it that is done, in [0, 1]; ``output_dir`` is where its results go; ``is_main`` is true on one
    of its processes, the one that writes and prints.
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
