"""Compute a loss in chunks of items, so that their logits are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug.contracts.loss import LossSum
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import RunError
from kdplug.objective.chunked.chunk_source import StudentChunks, TeacherChunks, blocks


def with_gradient(total: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return ``total`` as a function of ``inputs``, with these gradients. The backward pass scales and frees them.

    A gradient may have a wider type than its input: it is rounded after scaling.

    Raises: ``RunError`` in a second backward pass through the same total.
    """
    result: Tensor = _PrecomputedGrad.apply(total, list(gradients), *inputs)  # type: ignore[no-untyped-call]
    return result


class _PrecomputedGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.types = [one.dtype for one in inputs]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RunError(
                "a second backward pass through a loss on FactoredLogits is not possible: the gradient was computed in the "
                "forward pass and freed in the first backward pass. Call the objective again, or use dense logits"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if one is None else one.mul_(slope) for one in gradients]
        return None, None, *(None if g is None else g.to(t) for g, t in zip(scaled, ctx.types, strict=True))


Rows = Callable[[Tensor, Tensor | SparseLogits, slice], Tensor]
"""Values of some items; their student logits are overwritten by the gradient. The slice selects the items."""

Loss = Callable[[Tensor, Tensor | SparseLogits, int], LossSum]
"""The loss of the items of one chunk, through autograd. The number is that of the chunk."""


@dataclass(frozen=True, slots=True)
class ChunkedLoss:
    """Both models' logits for items of ``classes`` classes, in ``chunks`` that cover them in order."""

    student: StudentChunks
    teacher: TeacherChunks
    chunks: tuple[slice, ...]
    classes: int
    device: torch.device
    dtype: torch.dtype

    @property
    def items(self) -> int:
        """The number of items of all chunks."""
        return sum(one.stop - one.start for one in self.chunks)

    def closed(self, rows: Rows) -> Tensor:
        """Sum a loss that has a closed form: its gradient overwrites the logits, a few rows at a time."""
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        with torch.no_grad():
            for chunk in self.chunks:
                self._load(chunk)
                for block in blocks(chunk.stop - chunk.start, self.classes, self.device):
                    student, teacher = self.student.block(block), self.teacher.block(block)
                    at = slice(chunk.start + block.start, chunk.start + block.stop)
                    total += rows(student, teacher, at).sum()
                    self.student.put(block, student)
                self.student.learn()
        return with_gradient(total, self.student.inputs, self.student.gradients)

    def differentiated(self, loss: Loss, parameters: Sequence[Tensor]) -> LossSum:
        """Sum and count any loss. Autograd runs over one chunk after the other, within the forward pass.

        ``parameters`` are the loss's own trainable parameters.
        """
        learns = torch.is_grad_enabled()
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        count: Any = 0
        sums: list[Tensor | None] = [None] * len(parameters)
        for number, chunk in enumerate(self.chunks):
            whole = slice(0, chunk.stop - chunk.start)
            with torch.no_grad():
                self._load(chunk)
                student, teacher = self.student.block(whole), self.teacher.block(whole)
            student = student.detach().requires_grad_(learns)
            found = loss(student, teacher, number)
            count = count + found.count
            with torch.no_grad():
                total += found.total
                if learns:
                    own, *theirs = _gradients(found.total, student, parameters)
                    self.student.put(whole, torch.zeros_like(student) if own is None else own)
                    self.student.learn()
                    sums = [_sum(one, two) for one, two in zip(sums, theirs, strict=True)]
        inputs = (*self.student.inputs, *parameters)
        return LossSum(with_gradient(total, inputs, (*self.student.gradients, *sums)), count)

    def _load(self, chunk: slice) -> None:
        self.student.load(chunk)
        self.teacher.load(chunk)


def _gradients(total: Tensor, student: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not total.requires_grad:
        return (None,) * (1 + len(parameters))
    return torch.autograd.grad(total, (student, *parameters), allow_unused=True)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
