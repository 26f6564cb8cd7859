"""Read and check the example ids that a user passes with a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.errors import OutputsError


def read_example_ids(value: Any, limit: int | None = None) -> Tensor:
    """Return the ids of a batch's examples as an int64 tensor ``[batch]``.

    Values are checked on a CPU only. ``limit`` is the number of examples in the data, if known.

    Raises: ``OutputsError`` for anything but one integer per example, and for an id that is negative or not below
    ``limit``.
    """
    try:
        ids = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise OutputsError(
            f"must be one integer per example, [batch], got {type(value).__name__}", field=EXAMPLE_IDS
        ) from None
    if ids.dim() != 1 or ids.dtype is torch.bool or ids.is_floating_point() or ids.is_complex():
        kind = str(ids.dtype).removeprefix("torch.")
        raise OutputsError(f"must be one integer per example, [batch], got {kind} {list(ids.shape)}", field=EXAMPLE_IDS)
    ids = ids.long()
    if ids.is_cpu and ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(one) for one in ids.aminmax())
        if low < 0:
            raise OutputsError(f"must be at least 0, got {low}", field=EXAMPLE_IDS)
        if limit is not None and high >= limit:
            raise OutputsError(
                f"must be below num_examples, which is {limit}, got {high}. Number the examples from 0",
                field=EXAMPLE_IDS,
            )
    return ids
