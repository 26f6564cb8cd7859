"""Whole numbers in as few bits as they need."""

from __future__ import annotations

import torch
from torch import Tensor

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
