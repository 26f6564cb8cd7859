"""Fingerprints of a teacher (without loading it) and of data, for teacher caches and for resuming runs."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy
from torch.utils.data import Dataset

from kdplug_tasks.batch import Sized
from kdplug_tasks.data.table import Table
from kdplug_tasks.images.image import Pictures
from kdplug_tasks.images.picture import find_picture
from kdplug_tasks.images.processor import ImageProcessor
from kdplug_tasks.models.family import Family
from kdplug_tasks.problem import Problem, Spanning
from kdplug_tasks.text.processor import TextProcessor

_ENDS = 1 << 16
_ROWS = 10_000
_EXAMPLES = 16
_NOT_OF_A_MODEL = re.compile(r"\..*|log\.jsonl")
"""Files that a run writes next to a teacher that it trains, and other hidden files."""
_PLAIN = (str, bytes, int, float, bool, type(None), list, tuple, dict)


@runtime_checkable
class Processing(Protocol):
    """A problem whose inputs are made by a processor."""

    @property
    def processor(self) -> Any:
        """The processor that turns rows into model inputs."""
        ...


def fingerprint_of(problem: Problem, family: Family, labelled: Sized) -> dict[str, Any]:
    """Return the teacher, its tokenizer or image processor, the classes and the problem as plain data.

    A teacher that is trained first is also identified by its training data, ``labelled``. A teacher in a folder is
    identified by the name, size and a checksum of both ends of each file, except hidden ones and ``log.jsonl``, so
    further training changes the fingerprint; a teacher on the hub is identified by its name. A language task adds the special tokens
    around documents. If the student has a different tokenizer, it is included too, since it determines the positions at
    which teacher outputs are compared.
    """
    teacher = family.teacher.model_dump(mode="json")
    found: dict[str, Any] = {"teacher": {**teacher, "files": _files(family.teacher.path)}, "problem": problem.auto}
    if names := family.changes.get("id2label"):
        found["classes"] = {str(place): name for place, name in names.items()}
    if family.teacher.train:
        found["fitted_on"] = _data(labelled)
    if isinstance(problem, Spanning):
        found["frame"] = problem.frame_of("teacher")._asdict()
        if problem.spans_vocabularies:
            own = problem.processor_of("student").tokenizer
            found["alignment"] = {"student_tokenizer": _tokenizer(own), "frame": problem.frame_of("student")._asdict()}
    if isinstance(problem, Processing) and isinstance(problem.processor, TextProcessor):
        found["tokenizer"] = _tokenizer(problem.processor.tokenizer)
    if isinstance(problem, Processing) and isinstance(problem.processor, ImageProcessor):
        found["image_processor"] = json.loads(problem.processor.processor.to_json_string())
    return found


class Identified(Dataset[Any]):
    """``examples`` made from the rows of ``table``, with a fingerprint of both."""

    def __init__(self, examples: Any, table: Table) -> None:
        self.examples = examples  # a ``Sized``; a problem's own class may offer more
        self.table = table

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Any:
        return self.examples[place]

    def fingerprint(self) -> dict[str, Any]:
        """Return checksums of every whole column, and of a few examples to detect changes in preprocessing."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        count = len(self.examples)
        mark = 0
        for place in sorted({share * count // _EXAMPLES for share in range(_EXAMPLES)} if count else ()):
            mark = _marked(self.examples[place], mark)
        columns = {name: _column(column) for name, column in self.table.columns.items()}
        files = {"files": _sizes(self.table)} if isinstance(self.examples, Pictures) else {}
        return {
            "shown_as": self.table.origin,
            "rows": len(self.table),
            "columns": columns,
            **files,
            "examples": f"{mark:08x}",
        }


def _column(column: Sequence[Any]) -> str:
    """Return a checksum of text, numbers, bytes or arrays; for other objects, such as images, their number."""
    if isinstance(column, numpy.ndarray):
        return f"{_marked(column, 0):08x}"
    if len(column) and not isinstance(column[0], _PLAIN):
        return f"{len(column)} of {type(column[0]).__name__}"
    mark, rows = 0, iter(column)
    while chunk := list(islice(rows, _ROWS)):
        mark = zlib.crc32(repr(chunk).encode(), mark)
    return f"{mark:08x}"


def _sizes(table: Table) -> str:
    """Return a checksum of the file sizes of images stored as files."""
    cells = table.columns["image"]
    sizes = [find_picture(cell, table).stat().st_size for cell in cells] if isinstance(cells[0], str) else []
    return f"{zlib.crc32(repr(sizes).encode()):08x}"


def _files(path: str | None) -> dict[str, str]:
    folder = None if path is None else Path(path)
    if folder is None or not folder.is_dir():
        return {}
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not _NOT_OF_A_MODEL.fullmatch(file.name)]
    return {file.name: _ends(file) for file in files}


def _ends(file: Path) -> str:
    """Return a checksum of a file's size and of both its ends."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        mark = zlib.crc32(stream.read(_ENDS), zlib.crc32(str(size).encode()))
        stream.seek(max(0, size - _ENDS))
        return f"{zlib.crc32(stream.read(), mark):08x}"


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return {"tokens": len(vocabulary), "vocabulary": f"{zlib.crc32(repr(vocabulary).encode()):08x}", **special}


def _data(examples: Sized) -> dict[str, Any]:
    mark = 0
    for place in range(len(examples)):
        mark = _marked(examples[place], mark)
    return {"examples": len(examples), "content": f"{mark:016x}"}


def _marked(value: Any, mark: int) -> int:
    if isinstance(value, numpy.ndarray):
        return zlib.crc32(numpy.ascontiguousarray(value).tobytes(), zlib.crc32(repr(value.shape).encode(), mark))
    if isinstance(value, tuple):
        for one in value:
            mark = _marked(one, mark)
        return mark
    return zlib.crc32(repr(value).encode(), mark)
