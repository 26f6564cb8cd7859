"""The cells of ``sst2.py``, and the file that keeps their results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sst2_contender import Settings
from sst2_scene import Scene


@dataclass(frozen=True)
class Grid:
    """What every cell of one work folder has in common."""

    scene: Scene
    settings: Settings
    epochs: int
    teacher_epochs: int

    def key(self) -> dict[str, Any]:
        """What results depend on, as JSON holds it."""
        scene = self.scene
        own = {
            "data": scene.data,
            "examples": scene.examples,
            "epochs": self.epochs,
            "teacher_epochs": self.teacher_epochs,
        }
        return {**own, **asdict(self.settings)}


@dataclass(frozen=True)
class Cell:
    """One training: a teacher, or one student of it."""

    seed: int
    layers: int = 0
    loss: str = "teacher"
    library: str = "kdplug"

    @property
    def name(self) -> str:
        return f"{self.seed}/teacher" if not self.layers else f"{self.seed}/{self.layers}/{self.loss}/{self.library}"


class Results:
    """``results.json`` of a work folder. Raises: ``SystemExit`` where it was made with other settings."""

    def __init__(self, grid: Grid) -> None:
        self.file = grid.scene.work / "results.json"
        self.data: dict[str, Any] = {"settings": grid.key(), "cells": {}}
        if self.file.exists():
            self.data = json.loads(self.file.read_text())
        if self.data["settings"] != grid.key():
            raise SystemExit(f"{self.file} was made with {self.data['settings']}; take another --work folder")

    def put(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keep the result of one cell."""
        self.data["cells"][cell.name] = found
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(self.data, indent=1))
        draft.replace(self.file)

    def missing(self, wanted: list[Cell]) -> list[Cell]:
        """What is still to be run."""
        return [cell for cell in wanted if cell.name not in self.data["cells"]]
