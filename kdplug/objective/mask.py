"""Masks: bool, or numbers that are 0 or 1. Anything else is refused instead of being read as a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdplug.errors import OutputsError


def wrong_values(mask: Tensor) -> Tensor:
    """Bool, ``True`` where ``mask`` holds something other than 0 and 1, such as ``nan``."""
    return mask != mask.bool()


def check_mask(mask: Tensor, owner: str, *, field: str = "") -> None:
    """Look at the values of a mask that is not bool, which waits for its device. ``owner`` or ``field`` names it.

    Raises: ``OutputsError`` where it holds something other than 0 and 1.
    """
    if mask.dtype is not torch.bool and wrong_values(mask).any():
        raise no_mask(mask, owner, field=field)


def doubt(mask: Tensor, owner: str) -> Tensor | None:
    """``check_mask`` without waiting for an accelerator: there a scalar on the device says whether the mask is wrong.

    ``None`` where nothing is left to check. The scalar is for ``nan_if``. Compiled code gets one on a CPU too.
    """
    if mask.dtype is torch.bool:
        return None
    if not mask.is_cpu or torch.compiler.is_compiling():
        return wrong_values(mask).any()
    check_mask(mask, owner)
    return None


def nan_if(value: Tensor, doubts: Sequence[Tensor]) -> Tensor:
    """``value``, and ``nan`` with a gradient of ``nan`` where a doubt is true."""
    if not doubts:
        return value
    return value * torch.ones_like(value).masked_fill(torch.stack(list(doubts)).any(), torch.nan)


def no_mask(mask: Tensor, owner: str, *, field: str = "") -> OutputsError:
    """The error about a mask that holds other values, with the way to convert it."""
    wrong = mask.detach()[wrong_values(mask)]
    if (wrong < 0).all():
        cut = ("[:, 0, 0]" if mask.shape[2] == 1 else "[:, 0, -1]") if mask.dim() == 4 else ""
        way = (
            "That is an extended attention mask, which is added to attention scores: 0 where a token counts. Return the "
            f"tokenizer's attention_mask of shape (batch, length) that it was made of, or (mask{cut} == 0)"
        )
    else:
        way = "Return (mask != 0) if any other number means that an item counts"
    message = f"must hold 0 and 1, or be bool, and holds {wrong[0].item():g}. {way}"
    return OutputsError(f"{owner} {message}" if owner else message, field=field)


def extended_hint(*masks: Tensor | None) -> str:
    """What an error about shapes adds where one of ``masks`` has the four axes of a model's extended mask; otherwise nothing."""
    found = next((mask for mask in masks if mask is not None and mask.dim() == 4), None)
    if found is None:
        return ""
    return (
        f". A mask {list(found.shape)} is the model's extended attention mask: return the tokenizer's attention_mask "
        "of shape (batch, length)"
    )


def places_that_count(mask: Tensor, *, field: str) -> Tensor:
    """Where the mask is 1, numbered through all items.

    Finding the places waits for the device. The same wait tells whether the mask holds other values than 0 and 1: more places
    than there are items are appended then.

    Raises: ``OutputsError`` as ``check_mask`` does.
    """
    items = mask.reshape(-1)
    counts = items.bool()
    if items.dtype is not torch.bool:
        counts = torch.cat([counts, (items != counts).any().expand(len(items) + 1)])
    places = counts.nonzero().squeeze(1)
    if len(places) > len(items):
        raise no_mask(mask, "", field=field)
    return places
