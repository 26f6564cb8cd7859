"""Select items of tensors ``[*items, …]``, and move tensors between devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdplug.errors import ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rows_of(items: Tensor, shape: torch.Size) -> Tensor:
    """Return the flat indices selected by a bool mask of ``shape``. Indices are returned unchanged.

    Raises: ``ShapeError`` for a mask of another shape, and for indices that are not ``[n]``.
    """
    import torch

    if items.dtype is torch.bool:
        if items.shape != shape:
            raise ShapeError(f"a mask of shape {list(items.shape)} does not match items {list(shape)}", field="items")
        return items.reshape(-1).nonzero().squeeze(1)
    if items.dim() != 1 or items.is_floating_point():
        raise ShapeError(
            f"must be a bool mask {list(shape)} or indices [n], got {items.dtype} {list(items.shape)}", field="items"
        )
    return items


def keep(tensor: Tensor, rows: Tensor, trailing: int) -> Tensor:
    """Return the selected rows of ``tensor``, whose last ``trailing`` axes belong to an item: ``[n, …]``."""
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - trailing :]).index_select(0, rows)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy the tensor to ``device``, without blocking if possible."""
    return tensor.to(device, non_blocking=True)
