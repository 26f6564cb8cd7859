"""Bit packing, quantization and input checks for cache codecs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdplug import Ragged, SettingError

_BYTE = 8


def width_of(count: int) -> int:
    """Return the number of bits that distinguish ``count`` values, at least 1."""
    return max(1, (count - 1).bit_length())


def packed_bytes(numbers: int, bits: int) -> int:
    """Return the bytes that ``numbers`` numbers of ``bits`` bits take."""
    return -(-numbers * bits // _BYTE)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Pack numbers below ``2**bits`` consecutively, the lowest bit first; each row starts at a new byte.

    Shapes: int64 ``[n, K]`` to uint8 ``[n, ceil(K · bits / 8)]``; ``bits`` is at most 32.
    """
    first, shift, span = _places(numbers.shape[1], bits, numbers.device)
    size = packed_bytes(numbers.shape[1], bits)
    found = torch.zeros(len(numbers), size + span, dtype=torch.int64, device=numbers.device)
    shifted = numbers << shift
    for place in range(span):  # neighbours share a byte but no bit, so adding combines them
        found.index_add_(1, first + place, (shifted >> (_BYTE * place)) & 255)
    return found[:, :size].to(torch.uint8)


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """Return the ``count`` numbers of each row passed to ``pack``.

    Shapes: uint8 ``[n, ceil(count · bits / 8)]`` to int64 ``[n, count]``.
    """
    first, shift, span = _places(count, bits, packed.device)
    padded = torch.nn.functional.pad(packed, (0, span)).long()
    words = padded.index_select(1, first)
    for place in range(1, span):
        words |= padded.index_select(1, first + place) << (_BYTE * place)
    return (words >> shift) & (1 << bits) - 1


def _places(count: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return the first byte of each number, its shift there, and the largest number of bytes that one spans."""
    starts = torch.arange(count, device=device) * bits
    return starts // _BYTE, starts % _BYTE, -(-(bits + _BYTE - 1) // _BYTE)


_STEPS = 254
_RULED_OUT = 255


def quantize(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes, and the highest and lowest finite value of each row, between which the codes interpolate.

    The steps are those of the square root of the distance from the highest value: the more likely a class, the smaller
    the step. With R the distance between the two, a value is off by at most ``R · u / 254 + R / 508²``, where u is the
    square root of its share of that distance: ``R / 253`` at the least likely class and almost 0 at the most likely.
    Rounding the two bounds to float16 adds to that.

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
    """Return the log-probabilities passed to ``quantize``, up to its error, in float32."""
    top, distance = _distance(bounds)
    found = top - (codes.float() / _STEPS).square() * distance
    return found.masked_fill(codes == _RULED_OUT, -torch.inf)


def _distance(bounds: Tensor) -> tuple[Tensor, Tensor]:
    top, low = bounds.float().chunk(2, dim=1)
    return top, top - low


def part_of(parts: Mapping[str, Tensor | Ragged], name: str) -> Tensor:
    """Return a part that must be a tensor."""
    found = parts[name]
    assert isinstance(found, Tensor)
    return found


def require_known(logits: Tensor) -> None:
    """Raise ``SettingError`` for logits without a distribution: nan, +inf, or only -inf."""
    highest = logits.detach().amax(-1)
    if bool(highest.isfinite().all()):
        return
    bad = int((~highest.isfinite()).sum())
    raise SettingError(
        f"the teacher's highest logit is not finite in {bad} of {len(logits)} items. Exclude padding with logits_mask; if "
        "the teacher overflows in float16, run the teacher in bfloat16 or float32"
    )


def unrepresentable(what: str, values: Tensor, dtype: str, otherwise: str) -> SettingError:
    """Return the error for finite values that ``dtype`` cannot represent; ``otherwise`` is the fix if no dtype can."""
    largest = values[values.isfinite()].abs().max()
    wider = next((name for name in ("bfloat16", "float32") if bool(largest.to(dtype_of(name)).isfinite())), None)
    fix = otherwise if wider is None else f"Set dtype: {wider}"
    return SettingError(
        f"a {what} has the absolute value {largest.item():g}, which {dtype} cannot represent. {fix}", field="dtype"
    )


def largest_error(given: Tensor, kept: Tensor) -> float:
    """Return the largest difference between finite numbers."""
    finite = given.isfinite()
    return float((given - kept.to(given.dtype)).masked_fill(~finite, 0.0).abs().max()) if given.numel() else 0.0


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of that name."""
    found: torch.dtype = getattr(torch, name)
    return found
