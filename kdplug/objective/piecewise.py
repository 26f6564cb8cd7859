"""A loss over pieces of the items, so that their logits are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.loss_sum import LossSum
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.objective.carry import carried
from kdplug.objective.piece import blocks, pieces
from kdplug.objective.piece_side import StudentSide, TeacherSide

Rows = Callable[[Tensor, Tensor | SparseLogits, slice], Tensor]
"""Values of some items, whose student logits are overwritten by their gradient; the slice says which items they are."""

Loss = Callable[[Tensor, Tensor | SparseLogits, slice], LossSum]
"""The loss of some items, through autograd."""


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Both models' logits over ``items`` items of ``classes`` classes, in pieces of ``length``."""

    student: StudentSide
    teacher: TeacherSide
    items: int
    classes: int
    length: int
    device: torch.device
    dtype: torch.dtype

    def closed(self, rows: Rows) -> Tensor:
        """The sum of a loss that knows its gradient: it is written over the logits a few rows at a time."""
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        with torch.no_grad():
            for piece in pieces(self.items, self.length):
                self._load(piece)
                for block in blocks(piece.stop - piece.start, self.classes, self.device):
                    student, teacher = self.student.block(block), self.teacher.block(block)
                    at = slice(piece.start + block.start, piece.start + block.stop)
                    total += rows(student, teacher, at).sum()
                    self.student.put(block, student)
                self.student.learn()
        return carried(total, self.student.inputs, self.student.gradients)

    def differentiated(self, loss: Loss, parameters: Sequence[Tensor]) -> LossSum:
        """The sum and count of any loss. Autograd runs over one piece after the other, within the forward pass.

        ``parameters`` are what the loss itself trains.
        """
        learns = torch.is_grad_enabled()
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        count: Any = 0
        sums: list[Tensor | None] = [None] * len(parameters)
        for piece in pieces(self.items, self.length):
            whole = slice(0, piece.stop - piece.start)
            with torch.no_grad():
                self._load(piece)
                student, teacher = self.student.block(whole), self.teacher.block(whole)
            student = student.detach().requires_grad_(learns)
            found = loss(student, teacher, piece)
            count = count + found.count
            with torch.no_grad():
                total += found.total
                if learns:
                    own, *theirs = _gradients(found.total, student, parameters)
                    self.student.put(whole, torch.zeros_like(student) if own is None else own)
                    self.student.learn()
                    sums = [_sum(one, two) for one, two in zip(sums, theirs, strict=True)]
        inputs = (*self.student.inputs, *parameters)
        return LossSum(carried(total, inputs, (*self.student.gradients, *sums)), count)

    def _load(self, piece: slice) -> None:
        self.student.load(piece)
        self.teacher.load(piece)


def _gradients(total: Tensor, student: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not total.requires_grad:
        return (None,) * (1 + len(parameters))
    return torch.autograd.grad(total, (student, *parameters), allow_unused=True)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
