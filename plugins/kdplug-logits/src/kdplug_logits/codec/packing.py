"""What cache codecs are given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdplug import Ragged, SettingError

_BYTE = 8


def width_of(count: int) -> int:
    """The bits that tell ``count`` things apart, 1 at least."""
    return max(1, (count - 1).bit_length())


def packed_bytes(numbers: int, bits: int) -> int:
    """What ``numbers`` numbers of ``bits`` bits take."""
    return -(-numbers * bits // _BYTE)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Numbers below ``2**bits`` one behind the other, the lowest bit first; each row begins with a byte of its own.

    Shapes: int64 ``[n, K]`` to uint8 ``[n, ceil(K · bits / 8)]``; ``bits`` is at most 32.
    """
    first, shift, span = _places(numbers.shape[1], bits, numbers.device)
    size = packed_bytes(numbers.shape[1], bits)
    found = torch.zeros(len(numbers), size + span, dtype=torch.int64, device=numbers.device)
    shifted = numbers << shift
    for place in range(span):  # neighbours share a byte and no bit, so adding joins them
        found.index_add_(1, first + place, (shifted >> (_BYTE * place)) & 255)
    return found[:, :size].to(torch.uint8)


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """The ``count`` numbers of each row that ``pack`` was given.

    Shapes: uint8 ``[n, ceil(count · bits / 8)]`` to int64 ``[n, count]``.
    """
    first, shift, span = _places(count, bits, packed.device)
    padded = torch.nn.functional.pad(packed, (0, span)).long()
    words = padded.index_select(1, first)
    for place in range(1, span):
        words |= padded.index_select(1, first + place) << (_BYTE * place)
    return (words >> shift) & (1 << bits) - 1


def _places(count: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The first byte of each number, how far it is shifted there, and how many bytes one may reach into."""
    starts = torch.arange(count, device=device) * bits
    return starts // _BYTE, starts % _BYTE, -(-(bits + _BYTE - 1) // _BYTE)


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
