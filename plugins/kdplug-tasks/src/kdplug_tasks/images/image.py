"""A class for each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils.data import Dataset

import kdplug
from kdplug_tasks.batch import Batch, features
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.images.picture import check_range, find_picture, read_picture
from kdplug_tasks.images.processor import ImageProcessor, reads_as_saved, size_of
from kdplug_tasks.models.family import Family
from kdplug_tasks.problem import Adapt
from kdplug_tasks.regular_file import NOT_REGULAR, is_special
from kdplug_tasks.targets.category import Category


class Pictures(Dataset[Any]):
    """Pictures, read when they are asked for, and their classes."""

    def __init__(self, table: Table, channels: int, labels: Sequence[int]) -> None:
        self.table = table
        self.channels = channels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[numpy.ndarray, int]:
        cell = self.table.columns["image"][place]
        return read_picture(cell, self.channels, self.table, place), self.labels[place]


class Images:
    """A picture and its class."""

    auto = "AutoModelForImageClassification"
    is_lower_better = False
    unit = "examples"

    def __init__(self, names: Sequence[str] | None, size: int | None) -> None:
        self.size = size
        self.target = Category(names)
        self.metric = self.target.metric
        self.columns = Columns(("image",), self.target.columns)
        self.channels = 3
        self._processor: ImageProcessor | None = None

    @property
    def processor(self) -> ImageProcessor:
        """How pictures are read, once ``settle`` was called."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Find the classes, and how the teacher reads pictures; the student is given the same."""
        family.changes = self.target.settle(source, family.trained)
        teacher, student = family.teacher_config, family.student_config
        if not isinstance(getattr(teacher, "num_channels", None), int):
            raise kdplug.ConfigError(
                f"its {type(teacher).__name__} has no num_channels, so it is not known what pictures it reads",
                field="teacher",
            )
        self.channels = teacher.num_channels
        for name in ("num_channels", "image_size"):
            mine, theirs = getattr(student, name, None), getattr(teacher, name, None)
            if mine != theirs and None not in (mine, theirs):
                raise kdplug.ConfigError(
                    f"is {mine}, and the teacher's {theirs}: both are given the same pictures",
                    field=f"student.config.{name}",
                )
        if self.size is not None:
            self._check_size(family)
        size = self.size or size_of(teacher) or size_of(student)
        self._processor = ImageProcessor.find(family, self.channels, size)

    def _check_size(self, family: Family) -> None:
        """Raises: ``ConfigError`` where the size that was asked for is not the only one."""
        path = family.teacher.path
        if path is not None and reads_as_saved(path):
            raise kdplug.ConfigError(
                f"has no effect: {path!r} brings an image processor, and that says the size", field="image_size"
            )
        for side, config in (("teacher", family.teacher_config), ("student", family.student_config)):
            if size_of(config) not in (None, self.size):
                raise kdplug.ConfigError(
                    f"is {self.size}, and the {side}'s config says {size_of(config)}. One of the two is enough",
                    field="image_size",
                )

    def examples(self, table: Table, *, optional: bool) -> Pictures:
        """Pictures and classes. That files exist is looked at here, what is in them when they are read."""
        for row, cell in enumerate(table.columns["image"]) if _holds_paths(table) else ():
            if not isinstance(cell, str):
                raise table.error(f"a picture must be a path, as in row 1, got {type(cell).__name__}", row)
            if is_special(file := find_picture(cell, table)):
                raise table.error(f"{cell!r} {NOT_REGULAR}", row)
            if not _is_file(file):
                raise table.error(f"there is no file {cell!r}", row)
        read_picture(table.columns["image"][0], self.channels, table, 0)
        check_range(table)
        return Pictures(table, self.channels, self.target.read(table, optional=optional))

    def collate(self, examples: list[Any]) -> Batch:
        """``pixel_values [batch, channels, height, width]``."""
        pixels = self.processor.pixels([picture for picture, _ in examples])
        return Batch({"pixel_values": pixels}, {"target": self.target.collate([label for _, label in examples])})

    def adaptor(self) -> Adapt:
        """Logits, loss, labels and features."""
        target = self.target

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            found = target.adapted(outputs.logits, batch.targets["target"])
            return {"logits": outputs.logits, **found, **features(outputs)}

        return adapt

    def count(self, batch: Batch) -> int:
        """The pictures."""
        return len(batch["pixel_values"])

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracy and macro F1."""
        logits, targets = [], []
        for batch in batches:
            logits.append(model(**batch).logits.float().cpu())
            targets.append(batch.targets["target"].cpu())
        return self.target.figures(torch.cat(logits), torch.cat(targets))

    def about(self) -> str:
        """The classes."""
        return self.target.about()

    def save(self, folder: Path) -> None:
        """Write how pictures are read."""
        self.processor.save(folder)


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long
        return path.is_file()
    return False


def _holds_paths(table: Table) -> bool:
    return isinstance(table.columns["image"][0], str)
