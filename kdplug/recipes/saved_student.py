"""Save a recipe's distilled student."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import SavesStudent, Task
from kdplug.contracts.tree import dotted, leaves
from kdplug.engine.checkpoint.archive import SUMS, sha256
from kdplug.engine.checkpoint.weights import STUDENT, save_weights
from kdplug.errors import ConfigError, RunError
from kdplug.report.file import replacing, write_json
from kdplug.report.record import RECORD

MODEL = "model"
"""The folder of a student that its task saved."""


def save_student(task: Task, student: nn.Module, output_dir: Path, record: Mapping[str, Any]) -> str:
    """Save the student and return the name of the file or folder.

    A task that saves students writes a folder, which gets ``record`` too; otherwise plain weights are written.
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
    """Remove a student's folder if an earlier run saved it; a record in the folder shows that."""
    if (output_dir / MODEL / RECORD).is_file():
        shutil.rmtree(output_dir / MODEL)


def forget_temporary(output_dir: Path, names: Iterable[str]) -> None:
    """Remove the temporary files and folders that a killed run left for the files ``names`` and for the student."""
    patterns = [f".{Path(name).stem}-????????{Path(name).suffix}" for name in names]
    for pattern in (*patterns, f".{MODEL}-????????"):
        for leftover in output_dir.glob(pattern):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def check_apart(recipe: Recipe, task: Task) -> None:
    """Check that the student's folder may be replaced.

    Raises: ``ConfigError`` if the task reads from it; ``RunError`` if no run saved it.
    """
    try:
        folder = Path(os.path.realpath(Path(recipe.output_dir) / MODEL))  # Path.resolve raises for a loop of links
        folder.exists()
    except (OSError, ValueError) as error:  # name too long, or contains NUL
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"{recipe.output_dir[:200]!r} is not a valid folder name: {reason}", field="output_dir"
        ) from error
    for path, text in leaves(recipe.task.settings):
        if not isinstance(text, str) or "\0" in text:
            continue
        found = Path(os.path.realpath(text))
        if folder.exists() and (found == folder or folder in found.parents):
            raise ConfigError(
                f"{text!r} is where this run writes its student. Choose another output_dir",
                field=f"task.{dotted(path)}",
            )
    if isinstance(task, SavesStudent) and folder.exists() and not (folder / RECORD).is_file():
        raise RunError(
            f"the student would be saved to {str(folder)!r}, but that folder was not written by a run. Choose another "
            "output_dir, or move the folder",
            field="output_dir",
        )
