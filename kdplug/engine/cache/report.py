"""Report on a teacher cache from its folder alone, without the model or the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.cache.layout import Layout
from kdplug.engine.cache.shard import CodingStats
from kdplug.engine.observe.activity import counted
from kdplug.errors import RunError


@dataclass(frozen=True, slots=True)
class CacheReport:
    """``written`` of ``shards`` shards are complete, with ``examples`` of ``count`` examples in ``bytes``.

    ``shared_bytes`` of these are stored once for all examples, such as the head of a ``hidden`` cache.
    ``fingerprint`` identifies the inputs, ``layout`` describes the outputs, and ``tally`` holds coding and rounding
    statistics.
    """

    path: Path
    written: int
    shards: int
    examples: int
    count: int
    bytes: int
    shared_bytes: int
    fingerprint: Mapping[str, Any]
    layout: Layout
    tally: CodingStats

    @classmethod
    def read(cls, path: Path, *, checks: bool = False) -> Self:
        """Read the manifest and records; if ``checks``, also read and verify every byte of every shard.

        Raises: ``RunError`` for a folder that is not a cache, or is damaged.
        """
        folder = CacheFolder(path)
        manifest = folder.manifest()
        if manifest is None:
            raise RunError(
                f"{path} is not a teacher cache: it contains no manifest.json. Create one with kdplug cache RECIPE "
                f"--out {path}"
            )
        extent = manifest.extent
        there = folder.written(extent.shards)
        notes = [folder.note(place) for place in there]
        shared = [folder.note(None)] if manifest.shared and folder.has_shared() else []
        if checks:
            for place in counted(there, "Reading the teacher cache", total=len(there), unit="shards"):
                folder.read(place, place * extent.shard_size)
            _ = folder.read_shared() if shared else None
        return cls(
            path,
            len(there),
            extent.shards,
            sum(note.examples for note in notes),
            extent.count,
            sum(note.bytes for note in [*notes, *shared]),
            sum(note.bytes for note in shared),
            manifest.fingerprint,
            manifest.layout,
            CodingStats.sum(note.tally for note in notes),
        )

    @property
    def is_complete(self) -> bool:
        return self.written == self.shards

    @property
    def bytes_per_item(self) -> float | None:
        """Size per item (token, or example of a classifier) with stored logits, without what is stored once."""
        return (self.bytes - self.shared_bytes) / self.tally.items if self.tally.items else None

    @property
    def classes(self) -> list[int]:
        """The number of classes of each coded head."""
        return [head.classes for head in self.layout.heads.values()]

    def to_data(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "path": str(self.path),
            "complete": self.is_complete,
            "shards": self.shards,
            "shards_written": self.written,
            "examples": self.count,
            "examples_written": self.examples,
            "bytes": self.bytes,
            "shared_bytes": self.shared_bytes,
            "items": self.tally.items,
            "positions": self.tally.positions,
            "coverage": self.tally.coverage,
            "bytes_per_item": self.bytes_per_item,
            "temperature": self.fingerprint.get("temperature"),
            "kept_mass": self.tally.kept_mass,
            "lowest_kept_mass": self.tally.lowest if self.tally.items else None,
            "largest_error": self.tally.error,
            "classes": self.classes,
            "holds": sorted(self.layout.names),
            "fingerprint": dict(self.fingerprint),
        }
