"""Choosing among the items of ``[*items, …]``, and moving what belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdplug.errors import ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rows_of(items: Tensor, shape: torch.Size) -> Tensor:
    """The places, among the items in a row, that a bool mask of their ``shape`` keeps. Places are passed through.

    Raises: ``ShapeError`` for a mask of another shape, and for places that are not ``[n]``.
    """
    import torch

    if items.dtype is torch.bool:
        if items.shape != shape:
            raise ShapeError(f"a mask {list(items.shape)} does not fit items {list(shape)}", field="items")
        return items.reshape(-1).nonzero().squeeze(1)
    if items.dim() != 1 or items.is_floating_point():
        raise ShapeError(
            f"must be a bool mask {list(shape)} or places [n], got {items.dtype} {list(items.shape)}", field="items"
        )
    return items


def keep(tensor: Tensor, rows: Tensor, trailing: int) -> Tensor:
    """The rows of ``tensor`` whose last ``trailing`` axes belong to an item: ``[n, …]``."""
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - trailing :]).index_select(0, rows)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on ``device``, without waiting for the copy where that is possible."""
    return tensor.to(device, non_blocking=True)
