"""Image classification: a class for each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from torch import nn
from torch.utils.data import Dataset

import kdplug
from kdplug_tasks.batch import INPUT_LENGTH, Batch, features, with_inputs
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.images.picture import check_range, find_picture, read_picture
from kdplug_tasks.images.processor import ImageProcessor, reads_as_saved, size_of
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.regular_file import NOT_REGULAR, is_special
from kdplug_tasks.targets.category import Category, at_least_float32, review_accuracy


class Picture(NamedTuple):
    """Pixels ``[height, width, channels]`` of an image, its class number, and its file or row."""

    pixels: numpy.ndarray
    label: int
    name: str


class Pictures(Dataset[Any]):
    """Images, read lazily, and their classes."""

    def __init__(self, table: Table, channels: int, labels: Sequence[int]) -> None:
        self.table = table
        self.channels = channels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> Picture:
        cell = self.table.columns["image"][place]
        pixels = read_picture(cell, self.channels, self.table, place)
        return Picture(pixels, self.labels[place], _name(cell, self.table, place))


class Images:
    """The problem of image classification."""

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
        """The image processor; available after ``settle``."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Determine the classes and the teacher's image processor, which the student shares."""
        family.changes = self.target.settle(source, family.trained)
        teacher, student = family.teacher_config, family.student_config
        if not isinstance(getattr(teacher, "num_channels", None), int):
            raise kdplug.ConfigError(
                f"the {type(teacher).__name__} has no num_channels, so the input format of the model is unknown. Use an image model whose config "
                "has num_channels",
                field="teacher",
            )
        self.channels = teacher.num_channels
        for name in ("num_channels", "image_size"):
            mine, theirs = getattr(student, name, None), getattr(teacher, name, None)
            if mine != theirs and None not in (mine, theirs):
                raise kdplug.ConfigError(
                    f"is {mine}, but the teacher's is {theirs}, and both models get the same images. Use a student with "
                    f"{name}: {theirs}",
                    field=f"student.config.{name}",
                )
        if self.size is not None:
            self._check_size(family)
        size = self.size or size_of(teacher) or size_of(student)
        self._processor = ImageProcessor.find(family, self.channels, size)

    def _check_size(self, family: Family) -> None:
        """Raise ``ConfigError`` if the teacher's image processor or a model's config already sets the size."""
        path = family.teacher.path
        if path is not None and reads_as_saved(path):
            raise kdplug.ConfigError(
                f"has no effect, since the image processor in {path!r} sets the size. Remove image_size",
                field="image_size",
            )
        for side, config in (("teacher", family.teacher_config), ("student", family.student_config)):
            if size_of(config) not in (None, self.size):
                raise kdplug.ConfigError(
                    f"is {self.size}, but the {side}'s config has {size_of(config)}. Remove image_size, and set the size in the configs of "
                    "teacher and student",
                    field="image_size",
                )

    def examples(self, table: Table, *, optional: bool) -> Pictures:
        """Return images and classes.

        All files are checked to exist; their content is checked when they are read.
        """
        for row, cell in enumerate(table.columns["image"]) if _holds_paths(table) else ():
            if not isinstance(cell, str):
                raise table.error(f"the image must be a path, as in row 1, got {type(cell).__name__}", row)
            if is_special(file := find_picture(cell, table)):
                raise table.error(f"{cell!r} {NOT_REGULAR}", row)
            if not _is_file(file):
                where = "" if Path(cell).is_absolute() else ". Paths are relative to the file that lists them"
                raise table.error(f"there is no file {cell!r}{where}", row)
        read_picture(table.columns["image"][0], self.channels, table, 0)
        check_range(table)
        return Pictures(table, self.channels, self.target.read(table, optional=optional))

    def collate(self, examples: list[Any]) -> Batch:
        """Return ``pixel_values [batch, channels, height, width]`` and targets."""
        pixels = self.processor.pixels([one.pixels for one in examples])
        targets = {"target": self.target.collate([one.label for one in examples])}
        return Batch({"pixel_values": pixels}, targets, names=[one.name for one in examples])

    def adaptor(self) -> Adapt:
        """Return the adaptor: logits, loss, labels and features."""
        target = self.target

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            found = target.adapted(outputs.logits, batch.targets["target"])
            return {"logits": outputs.logits, **found, **features(outputs)}

        return adapt

    def count(self, batch: Batch) -> int:
        """Return the number of images."""
        return len(batch["pixel_values"])

    def predict(self, model: nn.Module, batches: Iterable[Batch]) -> kdplug.Predictions:
        """Return accuracy and macro F1, and the prediction for each image. Its input is the file or row."""
        rows: list[kdplug.Prediction] = []
        for batch in batches:
            logits = at_least_float32(model(**batch).logits).cpu()
            rows += with_inputs(self.target.rows(logits, batch.targets["target"].cpu()), batch.names)
        return self.target.predictions(rows)

    def review_data(self, source: Source) -> Iterable[tuple[str, str]]:
        """Yield warnings about the classes."""
        return self.target.review(source)

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterable[tuple[str, str]]:
        """Yield a warning if the teacher predicts the classes no better than by chance."""
        return review_accuracy(outputs)

    def about(self) -> str:
        """Describe the classes."""
        return self.target.about()

    def save(self, folder: Path, side: Side) -> None:  # noqa: ARG002
        """Write the image processor, which both sides share."""
        self.processor.save(folder)


def _name(cell: Any, table: Table, row: int) -> str:
    """Return the path of an image, of which the end if it is long, or its row."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path[-INPUT_LENGTH:] if isinstance(path, str) else table.place(row)


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # name too long
        return path.is_file()
    return False


def _holds_paths(table: Table) -> bool:
    return isinstance(table.columns["image"][0], str)
