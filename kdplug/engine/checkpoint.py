"""Everything that a run needs to go on, on disk: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from kdplug.engine.archive import read_archive, write_archive
from kdplug.errors import RunError

STUDENT = "student.safetensors"
"""The name of the file that holds the student's weights."""

_OBJECTIVE = "objective.safetensors"
_RUN = "run"
_MARK = ".run"
_FOLDER = re.compile(r"step-(\d+)")


@dataclass(slots=True, eq=False)
class Checkpoints:
    """The checkpoints of one run: ``output_dir/step-{n}/``, of which the last ``keep`` stay (``None``: all), and step ``spare``.

    A folder appears complete or not at all: it is written under a temporary name, flushed to disk, then renamed. ``run`` tells
    the checkpoints of this run from those that an earlier one left in the same folder.
    """

    output_dir: Path
    run: str
    keep: int | None = None
    spare: int | None = None

    def write(
        self, step: int, modules: Mapping[str, nn.Module], shared: Any, own: Any, accelerator: Accelerator
    ) -> Path:
        """Write a checkpoint and return the student's file. Every process calls it; the main one writes what is shared.

        ``modules`` holds the ``student`` and the ``objective``; ``shared`` and ``own`` are archives of this run and of this
        process. Tied weights are stored once; ``load_student`` and ``safetensors.torch.load_model`` put them back.

        Raises: ``RunError`` for what a checkpoint cannot hold.
        """
        temporary = self.output_dir / f".step-{step}.tmp"
        target = self.output_dir / f"step-{step}"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            write_archive(temporary, _process(accelerator.process_index), own)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _save(modules["student"], temporary / STUDENT, "student")
                _save(modules["objective"], temporary / _OBJECTIVE, "objective")
                write_archive(temporary, _RUN, {"step": step, "run": self.run, **shared})
                self._publish(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        accelerator.wait_for_everyone()
        return target / STUDENT

    def _publish(self, temporary: Path, target: Path) -> None:
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        _rename(temporary, target)
        _flush(self.output_dir)
        if self.keep is not None:
            for step, folder in steps(self.output_dir)[: -self.keep]:
                if step < step_of(target) and step != self.spare:
                    shutil.rmtree(folder)


def begin(output_dir: Path, *, is_main: bool, name: str = "") -> str:
    """Mark ``output_dir`` as belonging to a run, a new one where it has no ``name`` yet, and return its name.

    What a kill left half written is deleted.
    """
    name = name or uuid.uuid4().hex
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        for leftover in output_dir.glob(".step-*"):
            shutil.rmtree(leftover)
        temporary = output_dir / f"{_MARK}.tmp"
        temporary.write_text(name, encoding="utf-8")
        _flush(temporary)
        temporary.replace(output_dir / _MARK)
    return name


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """The checkpoints in ``output_dir``, oldest step first."""
    folders = output_dir.iterdir() if output_dir.is_dir() else ()
    found = [(int(match[1]), folder) for folder in folders if (match := _FOLDER.fullmatch(folder.name))]
    return sorted(found)


def step_of(folder: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(folder.name.removeprefix("step-"))


def latest(output_dir: Path) -> Path | None:
    """The last checkpoint of the last run in ``output_dir``, ``None`` where there is none to go on from."""
    mark = output_dir / _MARK
    if not mark.is_file():
        return None
    name = mark.read_text(encoding="utf-8")
    for _, folder in reversed(steps(output_dir)):
        if (folder / f"{_RUN}.json").is_file() and read_archive(folder, _RUN)["run"] == name:
            return folder
    return None


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write`` was given as ``shared``, with ``step`` and ``run``.

    Raises: ``RunError`` where there is no such checkpoint, or a damaged one.
    """
    if not (folder / f"{_RUN}.json").is_file():
        there = ", ".join(path.name for _, path in steps(folder)) or "none"
        raise RunError(f"{folder} is no checkpoint that a run can go on from. Checkpoints in it: {there}")
    found: dict[str, Any] = read_archive(folder, _RUN)
    return found


def read_process(folder: Path, index: int) -> dict[str, Any]:
    """What process ``index`` gave ``write`` as ``own``.

    Raises: ``RunError`` where it wrote nothing: the run had fewer processes.
    """
    if not (folder / f"{_process(index)}.json").is_file():
        raise RunError(f"{folder} was written by fewer processes than run now; start as many as then")
    found: dict[str, Any] = read_archive(folder, _process(index))
    return found


def load_student(student: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a checkpoint, its folder or its file, into ``student``.

    Raises: ``RunError`` where they do not fit.
    """
    file = Path(path)
    _load(student, file / STUDENT if file.is_dir() else file, "student")


def load_objective(objective: nn.Module, folder: Path) -> None:
    """Put what projections and losses had learned into ``objective``.

    Raises: ``RunError`` where it does not fit.
    """
    _load(objective, folder / _OBJECTIVE, "objective")


def _process(index: int) -> str:
    return f"process-{index}"


def _save(module: nn.Module, file: Path, owner: str) -> None:
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise RunError(
                f"the {owner}'s state dict holds {name!r}, a {type(value).__name__}; only tensors can be saved"
            )
    save_model(module, str(file))


def _load(module: nn.Module, file: Path, owner: str) -> None:
    try:
        load_model(module, str(file))
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the {owner}: {error}") from error


def _rename(temporary: Path, target: Path) -> None:
    """Rename a folder onto ``target``; a folder that stands there is moved aside first and deleted after."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside)


def _flush(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
