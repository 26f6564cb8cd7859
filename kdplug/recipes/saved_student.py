"""The student that a recipe leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import SavesStudent, Task
from kdplug.engine.checkpoint.archive import SUMS, sha256
from kdplug.engine.checkpoint.checkpoint import STUDENT, save_weights
from kdplug.errors import ConfigError, RunError
from kdplug.report.file import replacing, write_json
from kdplug.report.record import RECORD

MODEL = "model"
"""The folder of a student that its task saved."""


def save_student(task: Task, student: nn.Module, output_dir: Path, record: Mapping[str, Any]) -> str:
    """Save the student as its task does, with ``record`` in the folder, or else as plain weights; the name of what was written.

    Checksums are written next to the files.
    """
    if not isinstance(task, SavesStudent):
        with replacing(output_dir / STUDENT) as temporary:
            save_weights(student, temporary)
        _write_sums(output_dir, [output_dir / STUDENT])
        return STUDENT
    folder = Path(mkdtemp(dir=output_dir, prefix=f".{MODEL}-"))
    try:
        task.save_student(student, folder, record)
        write_json(folder / RECORD, record)
        _write_sums(folder, [file for file in sorted(folder.rglob("*")) if file.is_file()])
        folder.chmod(output_dir.stat().st_mode & 0o777)
        forget_student(output_dir)
        folder.rename(output_dir / MODEL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return MODEL


def _write_sums(folder: Path, files: Iterable[Path]) -> None:
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def forget_student(output_dir: Path) -> None:
    """Remove the folder of a student that an earlier run saved, which the record in it shows."""
    if (output_dir / MODEL / RECORD).is_file():
        shutil.rmtree(output_dir / MODEL)


def check_apart(recipe: Recipe, task: Task) -> None:
    """See that the folder of a student that the task saves may be replaced.

    Raises: ``ConfigError`` where the task reads from it; ``RunError`` where no run saved it.
    """
    try:
        folder = (Path(recipe.output_dir) / MODEL).resolve()
        folder.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds NUL
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"no folder can have the name {recipe.output_dir[:200]!r}: {reason}", field="output_dir"
        ) from error
    for path, text in _texts(recipe.task.settings, ("task",)):
        found = Path(text).resolve()
        if folder.exists() and (found == folder or folder in found.parents):
            raise ConfigError(
                f"{text!r} is where this run writes its student. Choose another output_dir", field=".".join(path)
            )
    if isinstance(task, SavesStudent) and folder.exists() and not (folder / RECORD).is_file():
        raise RunError(
            f"{str(folder)!r} is where the student would go, and it is not of a run. Choose another output_dir, or move it",
            field="output_dir",
        )


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str) and "\0" not in value:
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(one, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            yield from _texts(one, (*path, str(place)))
