"""The teacher cache of a distiller: teacher outputs for every example, in memory or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdplug.engine.cache.coding import Coding
from kdplug.engine.cache.store import Store
from kdplug.engine.cache.summary import CacheSummary

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


class TeacherCache:
    """The cache that a distiller keeps between runs: the outputs themselves, or the folder ``path`` that holds them.

    ``dtype`` is the storage dtype if it is narrower than the teacher's. ``coding`` encodes logits; ``None`` stores them
    unencoded. ``about`` is other plain data, by name, that must match. ``also`` are objectives of other runs that read the
    same cache, so that it stores what they read too. ``summary`` describes the last run.
    """

    def __init__(
        self, path: Path | None = None, dtype: torch.dtype | None = None, coding: Coding | None = None
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.coding = coding
        self.about: dict[str, Any] = {}
        self.also: tuple[Objective, ...] = ()
        self.summary: CacheSummary | None = None
        self._kept: tuple[dict[str, Any], Store] | None = None

    def remember(self, fingerprint: dict[str, Any], store: Store) -> None:
        self._kept = fingerprint, store

    def remembered(self, fingerprint: dict[str, Any]) -> Store | None:
        """Return the outputs in memory if they are from the same teacher and data; otherwise release them."""
        if self._kept is not None and self._kept[0] != fingerprint:
            self._kept = None
        return None if self._kept is None else self._kept[1]
