"""A head's logits on their way out of a cache, laid out as the batch wants them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.cache_codec import Ragged
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.engine.cache_coding import COUNTS, ITEMS, MASK, CodedHead, Coding, unpack
from kdplug.engine.cache_shard import MappedFile
from kdplug.errors import RunError

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
