"""Log-probabilities in one byte each."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 254
_RULED_OUT = 255


def quantize(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the highest and lowest finite value of each row, between which they lie.

    The steps are those of the square root of the distance from the highest: the likelier a class, the finer. With R the distance
    between the two, a value is off by at most ``R · u / 254 + R / 508²`` where u is the square root of its share of that distance,
    so by ``R / 253`` at the least likely class and next to nothing at the likeliest; beside that by the rounding of the
    two bounds to float16.

    Shapes: ``[n, K]`` to uint8 ``[n, K]`` and float16 ``[n, 2]``. Code 255 is ``-inf``.
    """
    finite = log_probs > -torch.inf
    high = log_probs.amax(1)
    low = torch.where(finite, log_probs, high.unsqueeze(1)).amin(1)
    bounds = torch.stack([high, low], 1).clamp(min=-65504.0).half()
    top, distance = _distance(bounds)
    share = ((top - log_probs) / distance).clamp(0, 1).nan_to_num(0.0)
    codes = (share.sqrt() * _STEPS).round().to(torch.uint8)
    return codes.masked_fill(~finite, _RULED_OUT), bounds


def restore(codes: Tensor, bounds: Tensor) -> Tensor:
    """The log-probabilities that ``quantize`` was given, up to its error, in float32."""
    top, distance = _distance(bounds)
    found = top - (codes.float() / _STEPS).square() * distance
    return found.masked_fill(codes == _RULED_OUT, -torch.inf)


def _distance(bounds: Tensor) -> tuple[Tensor, Tensor]:
    top, low = bounds.float().chunk(2, dim=1)
    return top, top - low
