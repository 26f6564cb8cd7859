"""What cache codecs are given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdplug import Ragged, SettingError


def part_of(parts: Mapping[str, Tensor | Ragged], name: str) -> Tensor:
    """A part that is a tensor."""
    found = parts[name]
    assert isinstance(found, Tensor)
    return found


def require_known(logits: Tensor) -> None:
    """Raises: ``SettingError`` for logits of which there is no distribution: nan, +inf, or nothing but -inf."""
    highest = logits.detach().amax(-1)
    if bool(highest.isfinite().all()):
        return
    bad = int((~highest.isfinite()).sum())
    raise SettingError(
        f"{bad} of {len(logits)} items have a highest logit that is not finite. Leave padding out by logits_mask; where the "
        "teacher overflows, run it in another precision"
    )


def largest_error(given: Tensor, kept: Tensor) -> float:
    """The largest difference between numbers that are finite."""
    finite = given.isfinite()
    return float((given - kept.to(given.dtype)).masked_fill(~finite, 0.0).abs().max()) if given.numel() else 0.0


def dtype_of(name: str) -> torch.dtype:
    """Torch's type of that name."""
    found: torch.dtype = getattr(torch, name)
    return found
