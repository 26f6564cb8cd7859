"""Encode and decode cached logits."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.cache_codec import CacheCodec, Encoded, Ragged
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits, tail_of
from kdplug.engine.cache.shard import CodingStats, MappedFile
from kdplug.errors import KdplugError, RunError
from kdplug.objective.batch import seed_of
from kdplug.objective.numerics import full

_CHUNK = 1 << 24
"""Maximum number of logits computed at a time from factored logits."""

MASK, ITEMS, COUNTS = "@@mask", "@@items", "@counts"
"""Suffixes of a head's name: for the positions that are kept, for the shape of an example's items, and, after the
name of a ragged part, for the rows of each item. A part's name follows a single ``@``, so it may be any name."""

TAIL = "@tail "
"""The start of the name of a part that holds the tail at another temperature, which follows."""


@dataclass(frozen=True, slots=True)
class Coding:
    """A codec, its name and settings as plain data, and the temperature at which it encodes logits.

    ``others`` are higher temperatures, for each of which the tail of ``SparseLogits`` is stored too.
    """

    codec: CacheCodec
    spec: Any
    temperature: float
    others: tuple[float, ...] = ()

    @property
    def highest(self) -> float:
        """The highest temperature, at which the stored classes hold the least probability."""
        return max((self.temperature, *self.others))

    def fingerprint(self) -> dict[str, Any]:
        """Return the plain data that must match for stored logits to be readable."""
        if not self.codec.uses_temperature:
            return {"codec": self.spec}
        return {
            "codec": self.spec,
            "temperature": [self.temperature, *self.others] if self.others else self.temperature,
        }


@dataclass(frozen=True, slots=True)
class CodedHead:
    """One head: its number of classes, whether a mask excluded items, and whether each part is ragged."""

    classes: int
    masked: bool
    parts: Mapping[str, bool]


class Coded(NamedTuple):
    """A batch of one head: rows by name, one tensor per example; ``shape`` is that of the logits."""

    head: CodedHead
    rows: dict[str, list[Tensor]]
    shape: torch.Size
    tally: CodingStats


def encode(coding: Coding, name: str, logits: Any, mask: Tensor | None, seed: int) -> Coded:
    """Encode the unmasked items of a batch.

    ``seed`` belongs to the batch. Each head (``name``) and each chunk of it gets a seed derived from it.

    Shapes: ``logits`` ``[examples, *items, classes]``, ``mask`` ``[examples, *items]``.
    Raises: ``RunError`` for logits that the codec rejects.
    """
    shape = logits.shape
    examples, classes = shape[0], shape[-1]
    flat = _counting(logits, mask)
    sizes = flat.sum(1).tolist()
    items = _at(logits, flat.reshape(-1).nonzero().squeeze(1))
    try:
        coded = _encoded(coding, items, name, seed)
    except KdplugError as error:
        raise RunError(f"the teacher's {name} cannot be encoded: {error}", field="teacher_cache_codec") from error
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
    """Return the tensors that the codec stores once per cache, by column name. The codec gets the unmasked items.

    Shapes: as in ``encode``.
    """
    items = _at(logits, _counting(logits, mask).reshape(-1).nonzero().squeeze(1))
    some = next(_chunks(coding, items)) if items.shape[0] else _blank(coding, items)
    return {f"{name}@{key}": one.detach().cpu().contiguous() for key, one in coding.codec.shared(some).items()}


def pack(mask: Tensor) -> Tensor:
    """Pack a bool ``[n]`` into bits, 8 per byte."""
    bits = torch.zeros(-(-len(mask) // 8) * 8, dtype=torch.uint8)
    bits[: len(mask)] = mask
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """Return the bool ``[count]`` that was passed to ``pack``."""
    bits = packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)
    return (bits & 1).reshape(-1)[:count].bool()


def _counting(logits: Any, mask: Tensor | None) -> Tensor:
    """Return a mask of the unmasked items, bool ``[examples, items]``."""
    counts = torch.ones(logits.shape[:-1], dtype=torch.bool) if mask is None else mask.detach().cpu().bool()
    return counts.reshape(logits.shape[0], -1)


def _encoded(coding: Coding, items: Any, name: str, seed: int) -> Encoded:
    """Encode in chunks if logits must be computed from factors. Without items, encode a blank item and discard it."""
    count = items.shape[0]
    if not count:
        one = _with_tails(coding, _blank(coding, items), seed)
        return Encoded({key: _none_of(part) for key, part in one.parts.items()})
    found = [
        _with_tails(coding, chunk, seed_of(seed, name, place)) for place, chunk in enumerate(_chunks(coding, items))
    ]
    masses = [one.kept_mass for one in found if one.kept_mass is not None]
    parts = {key: joined([one.parts[key] for one in found]) for key in found[0].parts}
    return Encoded(parts, torch.cat(masses) if masses else None, max(one.error for one in found))


def _with_tails(coding: Coding, items: Any, seed: int) -> Encoded:
    """Encode items, with a part for the tail at each other temperature. Kept mass is that at the highest."""
    one = coding.codec.encode(items, temperature=coding.temperature, seed=seed)
    if not coding.others:
        return one
    found = coding.codec.decode(one.parts, {}, classes=items.shape[-1], temperature=coding.temperature)
    found = replace(found, tails={other: tail_of(items, found.ids, other) for other in coding.others})
    error = max(one.error, *(_error_at(other, found, items) for other in coding.others))
    parts = {f"{TAIL}{other!r}": tail for other, tail in found.tails.items()}
    return Encoded({**one.parts, **parts}, -found.tails[coding.highest].expm1(), error)


def _error_at(temperature: float, found: SparseLogits, logits: Tensor) -> float:
    """Return the largest difference between a stored log-probability and the teacher's, at another temperature."""
    true = (full(logits.detach()) / temperature).log_softmax(-1).gather(-1, found.ids)
    stored = found.at_temperature(temperature).log_probs
    assert stored is not None
    return float((true - stored).masked_fill(true == -torch.inf, 0.0).abs().max())


def joined(parts: list[Tensor | Ragged]) -> Tensor | Ragged:
    """Concatenate the parts of all chunks."""
    if isinstance(parts[0], Ragged):
        values, counts = zip(*parts, strict=True)
        return Ragged(torch.cat(values), torch.cat(counts))
    return torch.cat(parts)  # type: ignore[arg-type]


def _chunks(coding: Coding, items: Any) -> Iterator[Any]:
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
    """Tensors that a codec stores once per cache, by head and name. ``source`` is the file they are mapped from."""

    tensors: Mapping[str, Tensor]
    source: MappedFile | None = None
    _moved: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of one head."""
        if device not in self._moved:
            self._moved[device] = {key: tensor.to(device) for key, tensor in self.tensors.items()}
        prefix = f"{name}@"
        return {key.removeprefix(prefix): one for key, one in self._moved[device].items() if key.startswith(prefix)}


class Decoded(NamedTuple):
    """Logits ``[*shape, classes]`` and a mask of the items that are present; the others hold another item's logits."""

    logits: Any
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the coded head ``name`` from rows by name, one mapping per example."""

    coding: Coding
    name: str
    head: CodedHead
    shared: Shared

    def columns(self, known: Container[str]) -> list[str]:
        """Return those of the ``known`` columns that hold the head."""
        found = [f"{self.name}@{part}" for part in self.head.parts]
        found += [f"{self.name}@{part}{COUNTS}" for part, ragged in self.head.parts.items() if ragged]
        return found + [self.name + key for key in (MASK, ITEMS) if self.name + key in known]

    def count(self, row: Row) -> int:
        """Return the number of stored items of an example."""
        part, ragged = next(iter(self.head.parts.items()))
        return len(row[f"{self.name}@{part}{COUNTS if ragged else ''}"])

    def numbered(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return each example's items as in the teacher's pass, numbered from 1 across the batch; 0 if not stored.

        Shapes: int64 ``[*items]``.
        """
        starts = accumulate(map(self.count, rows), initial=0)
        return [self._numbered(row, start) for row, start in zip(rows, starts, strict=False)]

    def decode(self, rows: Sequence[Row], numbers: Tensor, device: torch.device) -> Decoded:
        """Return the logits on ``device`` at ``numbers``, which are those of ``numbered`` arranged for a batch.

        Raises: ``RunError`` if the codec does not return logits of these items.
        """
        parts = {part: self._part(part, rows, device, ragged=ragged) for part, ragged in self.head.parts.items()}
        shared, classes = self.shared.of(self.name, device), self.head.classes
        tails = {float(part.removeprefix(TAIL)): parts.pop(part) for part in list(parts) if part.startswith(TAIL)}
        found = self.coding.codec.decode(parts, shared, classes=classes, temperature=self.coding.temperature)
        count = sum(map(self.count, rows))
        if tuple(found.shape) != (count, classes):
            raise RunError(
                f"the codec must decode {count} items of {classes} classes to logits {[count, classes]}, got "
                f"{list(found.shape)}",
                field="teacher_cache_codec",
            )
        found = replace(found, tails=tails) if tails else found
        places = (numbers - 1).clamp_min(0).reshape(-1)
        same = len(places) == count and torch.equal(places, torch.arange(count))
        logits = _laid_out(found, None if same else places.to(device), numbers.shape)
        return Decoded(logits, (numbers > 0).to(device, non_blocking=True))

    def _numbered(self, row: Row, start: int) -> Tensor:
        shape = row[self.name + ITEMS].tolist() if self.name + ITEMS in row else []
        items, held = prod(shape), 8 * len(row[self.name + MASK]) if self.head.masked else self.count(row)
        if items > held:  # checked before anything of that size is allocated
            raise RunError(
                f"an example of the cached {self.name} declares {items} items, but only {held} are stored: the cache is "
                "damaged. Build the cache again"
            )
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
        return found.map_parts(lambda part: _gathered(part, places, shape))
    if isinstance(found, FactoredLogits):
        return replace(found, hidden=_gathered(found.hidden, places, shape))
    return _gathered(found, places, shape)


def _gathered(part: Tensor, places: Tensor | None, shape: torch.Size) -> Tensor:
    if places is None:
        return part.view(*shape, *part.shape[1:])
    if not len(part):  # no item of this batch is stored
        return part.new_zeros(*shape, *part.shape[1:])
    return part.index_select(0, places).view(*shape, *part.shape[1:])
