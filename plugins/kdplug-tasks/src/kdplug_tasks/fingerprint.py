"""What a teacher's outputs depend on, told without loading it: for caches of them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy

from kdplug_tasks.example import Sized
from kdplug_tasks.images.processor import ImageProcessor
from kdplug_tasks.models.family import Family
from kdplug_tasks.problem import Problem, Spanning
from kdplug_tasks.text.processor import TextProcessor

_ENDS = 1 << 16


@runtime_checkable
class Processing(Protocol):
    """A problem whose inputs go through a processor first."""

    @property
    def processor(self) -> Any:
        """What makes inputs of a row."""
        ...


def fingerprint_of(problem: Problem, family: Family, labelled: Sized) -> dict[str, Any]:
    """The teacher, the tokenizer or image processor where there is one, the classes, and what is asked of them, as plain data; of a
    teacher that is fitted first also what it is fitted on, ``labelled``.

    Of a teacher in a folder the name, the size and a checksum of both ends of each of its files count, so that one that was
    trained further is another one; of one with a name on a hub, the name. Of a language task also what documents begin and end with.
    Where the student has a tokenizer of its own, it decides at which tokens the teacher is asked.
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


def _files(path: str | None) -> dict[str, list[int]]:
    if path is None or not Path(path).is_dir():
        return {}
    return {file.name: _ends(file) for file in sorted(Path(path).iterdir()) if file.is_file()}


def _ends(file: Path) -> list[int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        mark = zlib.crc32(stream.read(_ENDS))
        stream.seek(max(0, size - _ENDS))
        return [size, zlib.crc32(stream.read(), mark)]


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
