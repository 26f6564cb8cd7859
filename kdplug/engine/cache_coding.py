"""A head's logits on their way into a cache: of each example, what a codec makes of the items that count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.cache_codec import CacheCodec, Encoded, Ragged
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.engine.cache_tally import Tally
from kdplug.errors import KdplugError, RunError
from kdplug.objective.draw import seed_of

_CHUNK = 1 << 24
"""Numbers that logits which come in factors are multiplied out into at a time."""

MASK, ITEMS, COUNTS = "@@mask", "@@items", "@counts"
"""What stands behind a head's name for the positions that are kept, the shape of an example's items, and behind that of a ragged
part for the rows of each item. A part stands behind one ``@``, so that it may have any name."""


@dataclass(frozen=True, slots=True)
class Coding:
    """A codec, its name and settings as plain data, and the temperature at which it looks at logits."""

    codec: CacheCodec
    spec: Any
    temperature: float

    def fingerprint(self) -> dict[str, Any]:
        """What has to be the same for what was kept to be read."""
        kept = {"temperature": self.temperature} if self.codec.uses_temperature else {}
        return {"codec": self.spec, **kept}


@dataclass(frozen=True, slots=True)
class CodedHead:
    """One head: how many classes, whether a mask left items out, and for each part whether it is ragged."""

    classes: int
    masked: bool
    parts: Mapping[str, bool]


class Coded(NamedTuple):
    """A batch of one head: rows by name, one tensor for each example; ``shape`` is that of the logits."""

    head: CodedHead
    rows: dict[str, list[Tensor]]
    shape: torch.Size
    tally: Tally


def encode(coding: Coding, name: str, logits: Any, mask: Tensor | None, seed: int) -> Coded:
    """Code the items of a batch that count.

    ``seed`` is the batch's own. Each head (``name``) and each piece of it gets a seed derived from it.

    Shapes: ``logits`` ``[examples, *items, classes]``, ``mask`` ``[examples, *items]``.
    Raises: ``RunError`` for what the codec refuses.
    """
    shape = logits.shape
    examples, classes = shape[0], shape[-1]
    flat = _counting(logits, mask)
    sizes = flat.sum(1).tolist()
    items = _at(logits, flat.reshape(-1).nonzero().squeeze(1))
    try:
        coded = _encoded(coding, items, name, seed)
    except KdplugError as error:
        raise RunError(f"the teacher's {name} cannot be kept: {error}", field="teacher_cache_codec") from error
    rows: dict[str, list[Tensor]] = {}
    for part, kept in coded.parts.items():
        rows |= _rows(f"{name}@{part}", kept, sizes)
    if mask is not None:
        rows[name + MASK] = [pack(row) for row in flat]
    if len(shape) > 2:
        rows[name + ITEMS] = [torch.tensor(shape[1:-1], dtype=torch.int64)] * examples
    head = CodedHead(classes, mask is not None, {part: isinstance(kept, Ragged) for part, kept in coded.parts.items()})
    return Coded(head, rows, shape, _tally(coded, flat))


def shared_by(coding: Coding, name: str, logits: Any, mask: Tensor | None) -> dict[str, Tensor]:
    """What the codec keeps once for all, by the names of a cache. It is shown items that count, in the form that it takes.

    Shapes: as those of ``encode``.
    """
    items = _at(logits, _counting(logits, mask).reshape(-1).nonzero().squeeze(1))
    some = next(_pieces(coding, items)) if items.shape[0] else _blank(coding, items)
    return {f"{name}@{key}": one.detach().cpu().contiguous() for key, one in coding.codec.shared(some).items()}


def pack(mask: Tensor) -> Tensor:
    """A bool ``[n]`` as bits, 8 to a byte."""
    bits = torch.zeros(-(-len(mask) // 8) * 8, dtype=torch.uint8)
    bits[: len(mask)] = mask
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The bool ``[count]`` that ``pack`` was given."""
    bits = packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)
    return (bits & 1).reshape(-1)[:count].bool()


def _counting(logits: Any, mask: Tensor | None) -> Tensor:
    """Which items count, bool ``[examples, items]``."""
    counts = torch.ones(logits.shape[:-1], dtype=torch.bool) if mask is None else mask.detach().cpu().bool()
    return counts.reshape(logits.shape[0], -1)


def _encoded(coding: Coding, items: Any, name: str, seed: int) -> Encoded:
    """In pieces where logits have to be multiplied out; of no item at all, the parts of one, without it."""
    count = items.shape[0]
    if not count:
        one = coding.codec.encode(_blank(coding, items), temperature=coding.temperature, seed=seed)
        return Encoded({key: _none_of(part) for key, part in one.parts.items()})
    found = [
        coding.codec.encode(piece, temperature=coding.temperature, seed=seed_of(seed, name, place))
        for place, piece in enumerate(_pieces(coding, items))
    ]
    masses = [one.kept_mass for one in found if one.kept_mass is not None]
    parts = {key: joined([one.parts[key] for one in found]) for key in found[0].parts}
    return Encoded(parts, torch.cat(masses) if masses else None, max(one.error for one in found))


def joined(parts: list[Tensor | Ragged]) -> Tensor | Ragged:
    """One part of the items of all."""
    if isinstance(parts[0], Ragged):
        values, counts = zip(*parts, strict=True)
        return Ragged(torch.cat(values), torch.cat(counts))
    return torch.cat(parts)  # type: ignore[arg-type]


def _pieces(coding: Coding, items: Any) -> Iterator[Any]:
    if not isinstance(items, FactoredLogits) or coding.codec.takes_factored:
        yield items
        return
    size = max(1, _CHUNK // items.classes)
    for start in range(0, items.shape[0], size):
        yield items.at(torch.arange(start, min(start + size, items.shape[0]), device=items.device)).dense()


def _blank(coding: Coding, items: Any) -> Any:
    if not isinstance(items, FactoredLogits):
        return items.new_zeros(1, items.shape[-1])
    one = FactoredLogits(
        items.hidden.new_zeros(1, items.hidden.shape[-1]), items.weight, items.bias, items.scale, items.softcap
    )
    return one if coding.codec.takes_factored else one.dense()


def _none_of(part: Tensor | Ragged) -> Tensor | Ragged:
    return Ragged(part.values[:0], part.counts[:0]) if isinstance(part, Ragged) else part[:0]


def _at(logits: Any, places: Tensor) -> Any:
    places = places.to(logits.device)
    if isinstance(logits, Tensor):
        return logits.detach().reshape(-1, logits.shape[-1]).index_select(0, places)
    return logits.detach().at(places)


def _rows(name: str, part: Tensor | Ragged, sizes: list[int]) -> dict[str, list[Tensor]]:
    if isinstance(part, Tensor):
        return {name: _split(part, sizes)}
    counts = _split(part.counts, sizes)
    return {name: _split(part.values, [int(one.sum()) for one in counts]), name + COUNTS: counts}


def _split(part: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(torch.split(part.detach().cpu(), sizes))


def _tally(coded: Encoded, kept: Tensor) -> Tally:
    items, mass = int(kept.sum()), coded.kept_mass
    if mass is None or not items:
        return Tally(kept.numel(), items, float(items), 1.0, coded.error)
    return Tally(kept.numel(), items, float(mass.double().sum()), float(mass.min()), coded.error)
