"""Masks select. What they leave out is replaced before any arithmetic, so that padding may hold ``nan``."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import OutputsError, ShapeError
from kdplug_presets.shape import written

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def read_mask(owner: str, mask: Tensor, features: Tensor, items: torch.Size) -> Tensor:
    """The mask as bool on the device of ``features``: True or 1 means that the item counts, False or 0 that it does not.

    The engine gives bool masks. Looking at the values of any other waits for its device; a compiled loss does not look.

    Raises: ``ShapeError`` where its shape is not ``items``; ``OutputsError`` where it holds other values.
    """
    if mask.shape != items:
        raise ShapeError(
            f"{owner}: mask {written(mask)} does not fit the student's features {written(features)}: "
            f"it must be {list(items)}, got {list(mask.shape)}"
        )
    counts = mask.to(torch.bool)
    if mask.dtype is not torch.bool and not torch.compiler.is_compiling() and (mask != counts).any():
        found = mask[mask != counts][0].item()
        raise OutputsError(
            f"{owner}: a mask must hold 0 and 1, or be bool, and holds {found:g}. Of an extended attention mask, which is added to "
            "attention scores, give (mask == 0)"
        )
    return counts.to(features.device)


def bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as integers of the width of ``dtype``: all ones where it is True, none elsewhere."""
    return mask.to(_INTEGERS[dtype]).neg_()


def pairs(token_bits: Tensor) -> Tensor:
    """Which pairs of tokens count: ``[batch, length]`` to ``[batch, length, length]``."""
    return token_bits.unsqueeze(-1) & token_bits.unsqueeze(-2)


def keep_(values: Tensor, value_bits: Tensor) -> Tensor:
    """Set ``values`` to 0 where the bits are 0, in place, and return them.

    ``values`` must be fresh; the bits broadcast to them. Bits and-ed with all ones or none are a selection as
    ``masked_fill_`` is, so ``nan`` goes too, but one that a CPU vectorizes (three times as fast there).
    """
    values.view(_INTEGERS[values.dtype]).bitwise_and_(value_bits)
    return values


def kept(values: Tensor, value_bits: Tensor | None) -> Tensor:
    """A copy of ``values`` with 0 where the bits are 0; ``values`` themselves where there are no bits."""
    if value_bits is None:
        return values
    return values.view(_INTEGERS[values.dtype]).bitwise_and(value_bits).view(values.dtype)
