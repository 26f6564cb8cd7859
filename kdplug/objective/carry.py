"""A total whose gradient was worked out along with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug.errors import RunError


def carried(total: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """``total`` as a function of ``inputs``, with these gradients. The backward pass scales them, and gives them away.

    A gradient may be of a wider type than its input: it is rounded after it was scaled.

    Raises: ``RunError`` in a second backward pass through the same total.
    """
    result: Tensor = _Carried.apply(total, list(gradients), *inputs)  # type: ignore[no-untyped-call]
    return result


class _Carried(torch.autograd.Function):
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
                "a second backward pass through a loss on FactoredLogits: its gradient was worked out in the forward pass and "
                "given away in the first. Call the objective again, or give it dense logits"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if one is None else one.mul_(slope) for one in gradients]
        return None, None, *(None if g is None else g.to(t) for g, t in zip(scaled, ctx.types, strict=True))
