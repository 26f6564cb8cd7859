"""Whether a loss that returns a scalar adds up over its items: looked at, on a few of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["mean", "sum"]
"""What a scalar is of the values of its items."""

Call = Callable[[Any, Tensor, Tensor, Tensor | None], Any]
"""Calls the loss given first with student logits, teacher logits and labels."""

_ITEMS = 16
"""Rows that are looked at; a multiple of 4."""

_IGNORED = -100

_PEAK = 25.0
"""What makes a class all but certain, in a vocabulary of any size."""

_TOLERANCE = {torch.float64: 1e-9}
_LOOSE = 1e-5
"""By what the two sides of a comparison may differ, as a share of the largest number in it; ``_LOOSE`` below float64."""


def kind_of(
    target: Any, call: Call, student: Tensor, teacher: Tensor, *, labels: Tensor | None, axes: int
) -> Kind | None:
    """Whether ``target`` is a mean over items or a sum over them; ``None`` where it is neither, or that cannot be told.

    It is called with some of the rows, as they are and changed so that no two quarters are alike: surer, flatter, shifted, and
    with the teacher's own logits for the student's. On all of them together it must give, in value and gradient, what it gives
    on parts of them, weighted by their items; and on items over ``axes - 1`` axes what it gives on the same ones in a row.
    Some labels are taken away, for a loss that ignores items without one is a mean over the others.

    A copy of the loss is called, in float64 where it takes that, without a trace in the random numbers. A loss that draws, or
    remembers what it saw, does not give the same twice, and a module with buffers may: neither is told.
    """
    if torch.compiler.is_compiling() or (isinstance(target, nn.Module) and next(target.buffers(), None) is not None):
        return None
    devices = [student.device] if student.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        warnings.catch_warnings(action="ignore"),
    ):
        rows = _rows(student, teacher, labels)
        for dtype in (torch.float64, student.dtype):
            try:
                of_type = rows.to(dtype)
                return _Probe(_copy(target, of_type.student), call, of_type, axes).kind()
            except Exception:  # noqa: S112  whatever it raises on these rows, it is not known to add up
                continue
    return None


@dataclass(frozen=True, slots=True)
class _Rows:
    student: Tensor
    teacher: Tensor
    labels: Tensor | None

    def to(self, dtype: torch.dtype) -> _Rows:
        return _Rows(self.student.to(dtype), self.teacher.to(dtype), self.labels)

    def at(self, index: list[int]) -> _Rows:
        return _Rows(self.student[index], self.teacher[index], None if self.labels is None else self.labels[index])

    def over(self, axes: int) -> _Rows:
        """The same items over ``axes - 1`` axes."""
        items = (len(self.student) // 2, 2, *[1] * (axes - 3))
        labels = None if self.labels is None else self.labels.reshape(items)
        return _Rows(self.student.reshape(*items, -1), self.teacher.reshape(*items, -1), labels)


def _rows(student: Tensor, teacher: Tensor, labels: Tensor | None) -> _Rows:
    """``_ITEMS`` rows, where there are fewer each one again with its classes moved on. Labels come on the CPU, with theirs.

    A device may fail for good where a label is none.
    """
    device = student.device if labels is None else torch.device("cpu")
    mine, theirs = (_moved(side.detach()).to(device) for side in (student, teacher))
    quarter = _ITEMS // 4
    peaks = torch.zeros_like(theirs[quarter : 2 * quarter])
    peaks.scatter_(-1, theirs[quarter : 2 * quarter].argmax(dim=-1, keepdim=True), _PEAK)
    theirs[quarter : 2 * quarter] += peaks
    mine[quarter : quarter + 2] += peaks[:2]
    mine[2 * quarter : 3 * quarter].div_(16)
    theirs[2 * quarter : 3 * quarter].div_(8)
    mine[-quarter:] += 3
    theirs[-quarter:] -= 2
    mine[::5] = theirs[::5]
    if labels is None:
        return _Rows(mine, theirs, None)
    places = torch.arange(_ITEMS, device=labels.device) % len(labels)
    found = labels.detach()[places].to(device, copy=True)
    found[1::3] = _IGNORED
    return _Rows(mine, theirs, found)


def _moved(side: Tensor) -> Tensor:
    count = min(len(side), _ITEMS)
    return torch.stack([side[place % count].roll(place // count, dims=-1) for place in range(_ITEMS)])


def _copy(target: Any, like: Tensor) -> Any:
    found = deepcopy(target)
    return found.to(like) if isinstance(found, nn.Module) else found


def _splits() -> Iterator[list[list[int]]]:
    """Ways to cut the rows into parts."""
    items = list(range(_ITEMS))
    half, third = _ITEMS // 2, _ITEMS // 3
    yield [items[::-1]]
    yield [items[:1], items[1:]]
    yield [items[:half], items[half:]]
    yield [items[::2], items[1::2]]
    yield [items[: third - 2], items[third - 2 : 2 * third], items[2 * third :]]


@dataclass(frozen=True, slots=True)
class _Probe:
    """A copy of a loss, and rows to call it with."""

    loss: Any
    call: Call
    rows: _Rows
    axes: int

    def kind(self) -> Kind | None:
        whole = self._outcome(self.rows)
        left: list[Kind] = ["mean", "sum"] if whole[1].any() else []
        for split in _splits():
            parts = [(len(part) / _ITEMS, part, self._outcome(self.rows.at(part))) for part in split]
            left = [kind for kind in left if _agree(whole, _joined(parts, whole, kind))]
        if self.axes > 2 and left and not _agree(whole, self._outcome(self.rows.over(self.axes))):
            return None
        return left[0] if left and _agree(whole, self._outcome(self.rows)) else None

    def _outcome(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        student = rows.student.clone().requires_grad_()
        value = self.call(self.loss, student, rows.teacher.clone(), rows.labels)
        if not isinstance(value, Tensor) or value.dim():
            raise TypeError("no scalar")
        if not value.requires_grad:
            return value, torch.zeros_like(self.rows.student[: len(rows.student)])
        (gradient,) = torch.autograd.grad(value, student)
        return value.detach(), gradient.reshape(-1, gradient.shape[-1])


def _joined(
    parts: list[tuple[float, list[int], tuple[Tensor, Tensor]]], whole: tuple[Tensor, Tensor], kind: Kind
) -> tuple[Tensor, Tensor]:
    """What the whole must be if the loss is of this kind."""
    value, gradient = torch.zeros_like(whole[0]), torch.empty_like(whole[1])
    for share, places, (of_part, its_gradient) in parts:
        weight = share if kind == "mean" else 1.0
        value += of_part * weight
        gradient[places] = its_gradient * weight
    return value, gradient


def _agree(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    tolerance = _TOLERANCE.get(first[0].dtype, _LOOSE)
    pairs = zip(first, second, strict=True)
    return all(bool((one - two).abs().max() <= tolerance * one.abs().max()) for one, two in pairs)
