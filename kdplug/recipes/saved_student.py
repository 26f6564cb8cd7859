"""Save a recipe's distilled student, and the teacher that it trained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors import SafetensorError
from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.task import SavesStudent, SavesTeacher, Task
from kdplug.contracts.tree import dotted, leaves
from kdplug.engine.checkpoint.archive import SUMS, read_sums, sha256
from kdplug.engine.checkpoint.folder import steps
from kdplug.engine.checkpoint.weights import STUDENT, save_weights
from kdplug.engine.observe.tracking import NAME as LOG
from kdplug.errors import ConfigError, RunError
from kdplug.recipes.arm import PREDICTIONS, RESULT, SECONDS, Arm
from kdplug.recipes.task import teacher_fit
from kdplug.report.file import replacing, write_json
from kdplug.report.record import RECORD

MODEL = "model"
"""The folder of a student that its task saved."""


def save_student(task: Task, student: nn.Module, output_dir: Path, record: Mapping[str, Any]) -> str:
    """Save the student and return the name of the file or folder.

    A task that saves students writes a folder, which gets ``record`` too; otherwise plain weights are written.
    Checksums are written next to the files.

    Raises: ``RunError`` if it cannot be written.
    """
    if not isinstance(task, SavesStudent):
        with _saving("student", output_dir), replacing(output_dir / STUDENT) as temporary:
            save_weights(student, temporary)
        with _saving("student", output_dir):
            _write_sums(output_dir, [output_dir / STUDENT])
        return STUDENT
    save = partial(task.save_student, student)
    with _saving("student", output_dir), _saved(save, output_dir, record) as temporary:
        _replace("student", temporary, output_dir / MODEL)
    return MODEL


def save_teacher(task: Task, teacher: nn.Module, folder: Path, record: Mapping[str, Any]) -> bool:
    """Save a trained teacher into ``folder``, which holds its checkpoints; return false if the task cannot save it.

    The folder gets ``record`` and checksums too.

    Raises: ``RunError`` if it cannot be written.
    """
    if not isinstance(task, SavesTeacher):
        return False
    save = partial(task.save_teacher, teacher)
    with _saving("teacher", folder), _saved(save, folder, record) as temporary:
        _replace("teacher", temporary, folder)
    return True


def _replace(side: str, temporary: Path, folder: Path) -> None:
    """Replace the model that an earlier run saved to ``folder`` by the one in ``temporary``; other files there are kept.

    If both are the same, nothing is replaced, so a kill cannot lose files of a finished run that is resumed.
    The record and the checksums are moved first: they show that a run wrote the others.

    Raises: ``RunError`` if that would replace a file that no run wrote.
    """
    sums = read_sums(temporary)
    if read_sums(folder) == sums and all(_has(folder / name, digest) for name, digest in sums.items()):
        return
    files = [file.relative_to(temporary) for file in sorted(temporary.rglob("*")) if not file.is_dir()]
    own = set(_own(folder))
    for file in files:
        if os.path.lexists(folder / file) and folder / file not in own:
            raise _of_no_run(side, folder / file, kind="file")
    _forget(folder)
    for file in sorted(files, key=lambda file: (file != Path(RECORD), file != Path(SUMS))):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (temporary / file).rename(folder / file)


def _has(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


def _own(folder: Path) -> list[Path]:
    """Return the files that a run wrote to the folder of a saved model, the record last; none without a record.

    Those are the files that its checksums list, except a listed name that leads out of the folder.
    """
    if not (folder / RECORD).is_file():
        return []
    root = folder.resolve()
    listed = [folder / name for name in read_sums(folder) if name not in (RECORD, SUMS) and "\0" not in name]
    inside = [file for file in listed if ".." not in file.parts and root in (file.parent.resolve() / "_").parents]
    written = [file for file in (*inside, folder / SUMS) if file.is_symlink() or file.is_file()]
    return [*written, folder / RECORD]


def _forget(folder: Path) -> None:
    """Delete the files of a saved model, then the folders that are empty without them.

    The record is deleted last, and only if no other file remains: without it, ``check_apart`` would refuse the folder.
    """
    for file in _own(folder):
        if file != folder / RECORD or not _others(folder):
            file.unlink()
        for above in file.parents:
            if folder not in above.parents or above.is_symlink() or any(above.iterdir()):
                break
            above.rmdir()


def _others(folder: Path) -> list[Path]:
    """Return the files and folders next to a record that are neither checkpoints nor the log of a training run."""
    names = (RECORD, LOG, RESULT, PREDICTIONS, SECONDS)
    known = {*(folder / name for name in names), *(path for _, path in steps(folder))}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file not in known and not file.name.startswith(".")]


@contextmanager
def _saved(save: Callable[[Path, Mapping[str, Any]], None], place: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder in ``place`` with what ``save`` writes, ``record`` and checksums."""
    folder = Path(mkdtemp(dir=place, prefix=f".{MODEL}-"))
    try:
        save(folder, record)
        write_json(folder / RECORD, record)
        _write_sums(folder, [file for file in sorted(folder.rglob("*")) if file.is_file()])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_sums(folder: Path, files: Iterable[Path]) -> None:
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def forget_student(output_dir: Path) -> None:
    """Delete a student's files if an earlier run saved it, and its folder if nothing else is in it."""
    folder = output_dir / MODEL
    _forget(folder)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def forget_teacher(folder: Path) -> None:
    """Delete the files of a trained teacher from the folder of its checkpoints if an earlier run saved it."""
    _forget(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def forget_temporary(output_dir: Path, names: Iterable[str], teacher: Path) -> None:
    """Remove the temporary files and folders that a killed run left for the files ``names`` and for both models."""
    patterns = [f".{Path(name).stem}-????????{Path(name).suffix}" for name in names]
    saved = f".{MODEL}-????????"
    for pattern in (*patterns, saved):
        for leftover in output_dir.glob(pattern):
            _remove(leftover)
    for leftover in teacher.glob(saved):
        _remove(leftover)


@contextmanager
def _saving(side: str, folder: Path) -> Iterator[None]:
    """Raise ``RunError`` if a model cannot be written inside the block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the {side} to {str(folder)!r}: {error}. Fix the cause, then run again with --resume",
            field="output_dir",
        ) from error


def check_apart(recipe: Recipe, task: Task) -> None:
    """Check that the folders of the saved student and teacher may be replaced.

    Raises: ``ConfigError`` if the task reads from one; ``RunError`` if no run saved it.
    """
    model, teacher = (_folder(recipe, name) for name in (MODEL, Arm.TEACHER.value))
    _check_unread(recipe, model, "this run writes its student")
    is_file = model.exists() and not model.is_dir()
    if isinstance(task, SavesStudent) and (is_file or (_others(model) and not (model / RECORD).is_file())):
        raise _of_no_run("student", model)
    if isinstance(task, SavesTeacher) and teacher_fit(task) is not None:
        _check_unread(recipe, teacher, "this run writes its teacher")
        if _others(teacher) and not (teacher / RECORD).is_file():
            raise _of_no_run("teacher", teacher)
    elif (teacher / RECORD).is_file():
        _check_unread(recipe, teacher, "an earlier run wrote its teacher, which this run would delete")


def _check_unread(recipe: Recipe, folder: Path, what: str) -> None:
    for path, text in leaves(recipe.task.settings) if folder.exists() else ():
        if not isinstance(text, str) or "\0" in text:
            continue
        found = Path(os.path.realpath(os.path.expanduser(text)))  # noqa: PTH111  Path.expanduser raises
        if found == folder or folder in found.parents:
            raise ConfigError(
                f"{text!r} is the folder to which {what}. Choose another output_dir", field=f"task.{dotted(path)}"
            )


def _of_no_run(side: str, place: Path, kind: str = "folder") -> RunError:
    return RunError(
        f"the {side} would be saved to {str(place)!r}, but that {kind} was not written by a run. Choose another "
        f"output_dir, or move the {kind}",
        field="output_dir",
    )


def _folder(recipe: Recipe, name: str) -> Path:
    try:
        folder = Path(os.path.realpath(Path(recipe.output_dir) / name))  # Path.resolve raises for a loop of links
        folder.exists()
    except (OSError, ValueError) as error:  # name too long, or contains NUL
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"{recipe.output_dir[:200]!r} is not a valid folder name: {reason}", field="output_dir"
        ) from error
    return folder
