"""How much of the teacher's probability a cache keeps, at the temperature at which the loss reads it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.cache_codec import CacheCodec, Encoded, Ragged
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.engine.cache.shard import CodingStats, MappedFile
from kdplug.errors import KdplugError, RunError
from kdplug.objective.batch import seed_of

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
    tally: CodingStats


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


def _tally(coded: Encoded, kept: Tensor) -> CodingStats:
    items, mass = int(kept.sum()), coded.kept_mass
    if mass is None or not items:
        return CodingStats(kept.numel(), items, float(items), 1.0, coded.error)
    return CodingStats(kept.numel(), items, float(mass.double().sum()), float(mass.min()), coded.error)


Row = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What a codec stores once for all items, by head and name; on each device once. ``source`` is the file it is mapped from."""

    tensors: Mapping[str, Tensor]
    source: MappedFile | None = None
    _moved: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """What belongs to a head."""
        if device not in self._moved:
            self._moved[device] = {key: tensor.to(device) for key, tensor in self.tensors.items()}
        prefix = f"{name}@"
        return {key.removeprefix(prefix): one for key, one in self._moved[device].items() if key.startswith(prefix)}


class Decoded(NamedTuple):
    """Logits ``[*shape, classes]``, and which of them there are: the others hold those of another item."""

    logits: Any
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the coded head ``name`` out of rows by name, one mapping for each example."""

    coding: Coding
    name: str
    head: CodedHead
    shared: Shared

    def columns(self, known: Container[str]) -> list[str]:
        """The columns that hold the head, of those that are ``known``."""
        found = [f"{self.name}@{part}" for part in self.head.parts]
        found += [f"{self.name}@{part}{COUNTS}" for part, ragged in self.head.parts.items() if ragged]
        return found + [self.name + key for key in (MASK, ITEMS) if self.name + key in known]

    def count(self, row: Row) -> int:
        """How many items of an example are kept."""
        part, ragged = next(iter(self.head.parts.items()))
        return len(row[f"{self.name}@{part}{COUNTS if ragged else ''}"])

    def numbered(self, rows: Sequence[Row]) -> list[Tensor]:
        """The items of each example as they lay when the teacher saw them, numbered from 1 through all; 0 where none was kept.

        Shapes: int64 ``[*items]``.
        """
        starts = accumulate(map(self.count, rows), initial=0)
        return [self._numbered(row, start) for row, start in zip(rows, starts, strict=False)]

    def decode(self, rows: Sequence[Row], numbers: Tensor, device: torch.device) -> Decoded:
        """The logits on ``device`` at ``numbers``, which are those of ``numbered`` laid out for a batch.

        Raises: ``RunError`` where the codec gives back something else than logits of these items.
        """
        parts = {part: self._part(part, rows, device, ragged=ragged) for part, ragged in self.head.parts.items()}
        shared, classes = self.shared.of(self.name, device), self.head.classes
        found = self.coding.codec.decode(parts, shared, classes=classes, temperature=self.coding.temperature)
        count = sum(map(self.count, rows))
        if tuple(found.shape) != (count, classes):
            raise RunError(
                f"gives back logits {list(found.shape)} for {count} items of {classes} classes",
                field="teacher_cache_codec",
            )
        places = (numbers - 1).clamp_min(0).reshape(-1)
        same = len(places) == count and torch.equal(places, torch.arange(count))
        logits = _laid_out(found, None if same else places.to(device), numbers.shape)
        return Decoded(logits, (numbers > 0).to(device, non_blocking=True))

    def _numbered(self, row: Row, start: int) -> Tensor:
        shape = row[self.name + ITEMS].tolist() if self.name + ITEMS in row else []
        items, held = prod(shape), 8 * len(row[self.name + MASK]) if self.head.masked else self.count(row)
        if items > held:  # before anything of that size is allocated
            raise RunError(f"the cached {self.name} has an example of {items} items and holds {held} of them")
        if not self.head.masked:
            return torch.arange(start + 1, start + 1 + items).view(shape)
        kept = unpack(row[self.name + MASK], items)
        return torch.where(kept, kept.cumsum(0) + start, 0).view(shape)

    def _part(self, part: str, rows: Sequence[Row], device: torch.device, *, ragged: bool) -> Tensor | Ragged:
        column = f"{self.name}@{part}"
        values = torch.cat([row[column] for row in rows]).to(device, non_blocking=True)
        if not ragged:
            return values
        return Ragged(values, torch.cat([row[column + COUNTS] for row in rows]).to(device, non_blocking=True))


def _laid_out(found: Any, places: Tensor | None, shape: torch.Size) -> Any:
    if isinstance(found, SparseLogits):
        of: dict[str, Any] = {
            key: _gathered(getattr(found, key), places, shape) for key in ("ids", "log_probs", "tail", "weights")
        }
        return replace(found, **of)
    if isinstance(found, FactoredLogits):
        return replace(found, hidden=_gathered(found.hidden, places, shape))
    return _gathered(found, places, shape)


def _gathered(part: Any, places: Tensor | None, shape: torch.Size) -> Any:
    if part is None:
        return None
    if places is None:
        return part.view(*shape, *part.shape[1:])
    if not len(part):  # nothing of this batch counts
        return part.new_zeros(*shape, *part.shape[1:])
    return part.index_select(0, places).view(*shape, *part.shape[1:])


_LEAST = 0.9
"""Below this mean most of what a high temperature is meant to show lies in the classes that are not kept."""

_CLASSES = 3


@dataclass(frozen=True, slots=True)
class KeptMass:
    """The teacher's probability at ``temperature`` on the classes that are known: the mean over items, and the least of an item."""

    temperature: float
    mean: float
    lowest: float

    @classmethod
    def of_cache(cls, coding: Coding | None, tally: CodingStats) -> KeptMass | None:
        """That of a cache whose codec leaves classes out; ``None`` for one that keeps all, or draws a sample of them."""
        if coding is None or tally.kept_mass is None or not leaves_out(decoded(coding)):
            return None
        return cls(coding.temperature, tally.kept_mass, tally.lowest)

    @classmethod
    def of_heads(cls, heads: Iterable[Any]) -> KeptMass | None:
        """That of logits that a teacher gives as ``SparseLogits`` itself; ``None`` where it does not."""
        found = [head for head in heads if leaves_out(head)]
        if not found:
            return None
        mass = torch.cat([head.log_probs.float().exp().sum(-1).flatten() for head in found])
        return cls(found[0].temperature, float(mass.mean()), float(mass.min())) if len(mass) else None

    @property
    def warning(self) -> str | None:
        """What is wrong where it is too little."""
        if self.mean >= _LEAST:
            return None
        return (
            f"the classes that are kept hold {self.mean:.3f} of the teacher's probability at temperature {self.temperature:g}; of "
            "all others the student learns only what they have together. Keep more classes, lower the temperature, or keep "
            "all of them (dense, hidden)"
        )

    def __str__(self) -> str:
        return f"kept mass {self.mean:.3f} at temperature {self.temperature:g} ({self.lowest:.3f} at least)"


def decoded(coding: Coding) -> Any:
    """What a codec gives back of one item whose logits are equal, which each codec can keep; ``None`` where it refuses that."""
    codec, one = coding.codec, torch.zeros(1, _CLASSES)
    logits: Any = FactoredLogits(torch.zeros(1, 1), torch.zeros(_CLASSES, 1)) if codec.takes_factored else one
    try:
        shared = codec.shared(logits)
        parts = codec.encode(logits, temperature=coding.temperature, seed=0).parts
        return codec.decode(parts, shared, classes=_CLASSES, temperature=coding.temperature)
    except KdplugError:
        return None


def leaves_out(logits: Any) -> bool:
    """Whether these name the likeliest classes and say at most what all others have together."""
    return isinstance(logits, SparseLogits) and logits.weights is None
