"""A gradient that the forward pass worked out up to a factor, scaled in place when it is asked for.

The buffer itself becomes the gradient, so that neither a second one nor a pass over it is paid for. A second backward
pass through a retained graph works it out again from the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def remember(ctx: Any, gradient: Tensor | None, inputs: tuple[Tensor | None, ...]) -> None:
    """Keep ``gradient`` for the first backward pass and ``inputs`` for another one.

    A compiled graph may not hold state of its own and saves the gradient in the ordinary way.
    """
    if torch.compiler.is_compiling():
        ctx.save_for_backward(gradient)
        return
    ctx.gradient = gradient
    ctx.save_for_backward(*inputs)


def recall(ctx: Any, factor: Tensor, again: Callable[..., Tensor]) -> Tensor:
    """``factor`` times the gradient; ``again(*inputs)`` is called where it was handed out before."""
    if torch.compiler.is_compiling():
        saved: Tensor = ctx.saved_tensors[0]
        return saved * factor
    held: Tensor | None = ctx.gradient
    ctx.gradient = None
    gradient = again(*ctx.saved_tensors) if held is None else held
    return gradient.mul_(factor)
