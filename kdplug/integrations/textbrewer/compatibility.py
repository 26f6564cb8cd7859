"""TextBrewer's compatibility flags."""

from __future__ import annotations

import torch

__all__ = ["is_apex_available", "mask_dtype"]

mask_dtype = torch.bool


def is_apex_available() -> bool:
    """Return false: half precision uses torch, not apex."""
    return False
