"""Write checkpoints atomically, and read them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from kdplug.engine.checkpoint.archive import check_file, damage, read_archive, write_archive, write_checksums
from kdplug.engine.checkpoint.folder import OBJECTIVE as _OBJECTIVE
from kdplug.engine.checkpoint.folder import RUN as _RUN
from kdplug.engine.checkpoint.folder import (
    TEACHER,
    check_replaceable,
    delete,
    discard,
    run_of,
    set_aside,
    step_of,
    steps,
)
from kdplug.engine.checkpoint.weights import read_weights, save_weights, student_file, write_student
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

_logger = logging.getLogger("kdplug")

MARK = ".run"
_LEFTOVER = re.compile(r"\.step-\d+\.(tmp|old)")
_BRANCH = re.compile(r"(.+)@([0-9]+)/[0-9a-f]{32}")


@dataclass(slots=True, eq=False)
class Checkpoints:
    """The checkpoints of one run: ``output_dir/step-{n}/``. Keeps the last ``keep`` (``None``: all) and step ``spare``.

    A folder is complete or absent: it is written under a temporary name, with a checksum for each file, flushed to
    disk, then renamed. ``run`` distinguishes the checkpoints of this run from those of an earlier run in the same
    folder. ``frozen`` holds digests of the student's weights that were frozen at the start of the run.
    """

    output_dir: Path
    run: str
    keep: int | None = None
    spare: int | None = None
    frozen: Mapping[str, str] = field(default_factory=dict)

    def write(
        self, step: int, modules: Mapping[str, nn.Module], shared: Any, own: Any, accelerator: Accelerator
    ) -> Path:
        """Write a checkpoint and return the student's file. Every process calls it; the main one writes shared files.

        ``modules`` holds the ``student``, the ``objective``, and the ``teacher`` if the run updates it. ``shared`` and ``own`` are archives of the run and of
        this process. Tied weights are stored once; ``load_student`` and ``safetensors.torch.load_model`` restore them.
        Weights that are views of the same memory are stored separately, and ``frozen`` ones that have not changed are
        left out; only ``load_student`` can load these files.

        Raises: ``RunError`` for data that a checkpoint cannot hold, if the folder cannot be written, or if another run
        has started in ``output_dir``.
        """
        temporary = self.output_dir / f".step-{step}.tmp"
        target = self.output_dir / f"step-{step}"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            accelerator.wait_for_everyone()
            write_archive(temporary, _process(accelerator.process_index), own)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_student(modules["student"], temporary, self.frozen)
                save_weights(modules["objective"], temporary / _OBJECTIVE, "objective")
                if "teacher" in modules:
                    save_weights(modules["teacher"], temporary / TEACHER, "teacher")
                write_archive(temporary, _RUN, {"step": step, "run": self.run, **shared})
                self._publish(temporary, target, step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _unwritten(target, error) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        accelerator.wait_for_everyone()
        return student_file(target)

    def _publish(self, temporary: Path, target: Path, step: int) -> None:
        write_checksums(temporary, sorted(temporary.iterdir()), _flush)
        _flush(temporary)
        self._check_mark()
        check_replaceable(target)
        _rename(temporary, target)
        _flush(self.output_dir)
        self._prune(step)

    def _prune(self, last: int) -> None:
        """Delete old checkpoints of this run after writing that of step ``last``."""
        if self.keep is None:
            return
        until = [(step, folder) for step, folder in steps(self.output_dir) if step <= last]
        own = [(step, folder) for step, folder in until if _belongs(run_of(folder), step, self.run)]
        for step, folder in own[: -self.keep]:
            if step != self.spare:
                discard(folder)

    def _check_mark(self) -> None:
        """Raise ``RunError`` if another run has started in ``output_dir``."""
        mark = self.output_dir / MARK
        if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") != _marker(self.run):
            raise RunError(
                f"another run has started in {str(self.output_dir)!r}, and each would overwrite the other's checkpoints. Give each "
                "run its own folder",
                field="output_dir",
            )


def _unwritten(target: Path, error: Exception) -> RunError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    earlier = [str(folder) for _, folder in steps(target.parent) if folder != target]
    again = f"resume from {earlier[-1]}" if earlier else "start again: there is no earlier checkpoint"
    return RunError(
        f"cannot write the checkpoint {target}: {reason}. Fix the cause, then {again}",
        field="output_dir",
    )


def begin(output_dir: Path, *, is_main: bool, name: str = "", step: int | None = None, overwrite: bool = False) -> str:
    """Mark ``output_dir`` with the name of a run, a new one if ``name`` is empty, and return the name.

    If the run resumes from ``step`` and has later checkpoints, its name becomes that of a branch, which only has the
    checkpoints up to ``step``. The later ones stay, until the branch reaches their steps. The name that the main
    process returns counts.

    Incomplete checkpoints of a killed run are deleted; with ``overwrite``, so are all complete ones.

    Raises: ``RunError`` if the folder cannot be written.
    """
    name = name or uuid.uuid4().hex
    if is_main:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            for leftover in output_dir.glob(".step-*"):
                if _LEFTOVER.fullmatch(leftover.name):
                    delete(leftover)
            if step is not None and any(other > step and run_of(path) == name for other, path in steps(output_dir)):
                name = f"{name}@{step}/{uuid.uuid4().hex}"
            temporary = output_dir / f"{MARK}.tmp"
            temporary.write_text(_marker(name), encoding="utf-8")
            _flush(temporary)
            temporary.replace(output_dir / MARK)
            for _, folder in steps(output_dir) if overwrite else ():
                discard(folder)
        except OSError as error:
            raise RunError(f"cannot write to {str(output_dir)!r}: {error.strerror}", field="output_dir") from error
    return name


def latest(output_dir: Path, *, warns: bool = True) -> Path | None:
    """Return the newest intact checkpoint of the last run in ``output_dir``, or ``None`` if that run wrote none.

    If ``warns``, log a warning that names each newer, damaged checkpoint.

    Raises: ``RunError`` if all are damaged, or if the file that identifies the run is damaged or missing.
    """
    name = _marked(output_dir)
    broken: list[str] = []
    for step, folder in reversed(steps(output_dir)) if name else ():
        if not (found := damage(folder, [f"{_RUN}.json"], only=True)):
            if not _belongs(read_plain(folder)["run"], step, name):
                continue
            found = _damage(folder, step)
        if not found:
            if broken and warns:
                _logger.warning("skipping damaged checkpoints: %s. Resuming from %s", "; ".join(broken), folder)
            return folder
        broken.append(f"{folder} ({', '.join(found)})")
    if broken:
        raise RunError(
            "every checkpoint to resume from is damaged:\n    "
            + "\n    ".join(broken)
            + "\nRestore one from a copy, or start again with overwrite instead of resume"
        )
    return None


def _belongs(run: str | None, step: int, name: str) -> bool:
    """Return whether the run ``name`` has the checkpoint of ``run`` at ``step``: its own, or one before it branched."""
    while run != name:
        branch = _BRANCH.fullmatch(name)
        if branch is None or step > int(branch[2]):
            return False
        name = branch[1]
    return True


def check_whole(folder: Path, output_dir: Path) -> None:
    """Raise a ``RunError`` that names checkpoints nearby if ``folder`` is missing, is not a checkpoint, or is damaged."""
    if not folder.is_dir():
        near = folder.parent if steps(folder.parent) else output_dir
        there = ", ".join(path.name for _, path in steps(near))
        auto = 'Set resume="auto" to resume from the newest checkpoint in output_dir'
        raise RunError(
            f"there is no folder {folder} to resume from. "
            + (f"Checkpoints in {near}: {there}. {auto}" if there else f"There is no checkpoint in {near} either"),
            field="resume",
        )
    step = step_of(folder)
    if step is None and not student_file(folder).is_file():
        there = ", ".join(path.name for _, path in steps(folder))
        way = f"Resume from one of the checkpoints in this folder: {there}" if there else "Resume from a folder step-N"
        raise RunError(f"{folder} is not a checkpoint to resume from. {way}")
    if found := _damage(folder, step):
        other = _other(folder)
        way = (
            f"Resume from {other}, the newest undamaged checkpoint next to it"
            if other
            else "There is no undamaged checkpoint next to it: restore a copy, or start again with overwrite instead of resume"
        )
        raise RunError(f"{folder} is damaged: {', '.join(found)}. {way}")


def _other(folder: Path) -> str:
    """Return the name of the newest intact checkpoint next to ``folder``, or an empty string."""
    for step, path in reversed(steps(folder.parent)):
        if path != folder and not _damage(path, step):
            return path.name
    return ""


def _damage(folder: Path, step: int | None) -> list[str]:
    """Return a phrase for each damage of a checkpoint; ``step`` is the one in its folder name, if any."""
    names = [
        student_file(folder).name,
        _OBJECTIVE,
        *(f"{name}.{ending}" for name in (_RUN, _process(0)) for ending in ("json", "safetensors")),
    ]
    found = damage(folder, names)
    if not found and step is not None and (written := read_plain(folder)["step"]) != step:
        return [f"it was written after step {written}"]
    return found


def _marker(name: str) -> str:
    return f"{name} {_checksum(name)}"


def _marked(output_dir: Path) -> str:
    """Return the name of the last run in ``output_dir``, or an empty string."""
    mark = output_dir / MARK
    if not mark.is_file():
        if there := steps(output_dir):
            raise RunError(
                f"{output_dir} holds {there[-1][1].name}, but not the file {MARK}, which identifies the run of its "
                f"checkpoints. Pass the checkpoint to resume from (resume={str(there[-1][1])!r}), or start again with overwrite instead of resume"
            )
        return ""
    name, _, checksum = mark.read_text(encoding="utf-8", errors="replace").rpartition(" ")
    if not name or checksum != _checksum(name):
        raise RunError(
            f"{mark}, which identifies the run of the checkpoints next to it, is damaged. Pass the checkpoint to "
            "resume from (resume='…/step-N'), or start again with overwrite instead of resume"
        )
    return name


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def read_plain(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` without its tensors. Its checksum has been verified."""
    found: dict[str, Any] = read_json(folder / f"{_RUN}.json")
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """Return the ``shared`` data passed to ``write``, with ``step`` and ``run``.

    Raises: ``RunError`` if it cannot be read.
    """
    found: dict[str, Any] = read_archive(folder, _RUN)
    return found


def read_process(folder: Path, index: int) -> dict[str, Any]:
    """Return the ``own`` data that process ``index`` passed to ``write``.

    Raises: ``RunError`` if there is no such file.
    """
    file = f"{_process(index)}.json"
    if not (folder / file).is_file():
        raise RunError(f"{folder} is damaged: {file} is missing. Restore the file, or resume from another checkpoint")
    found: dict[str, Any] = read_archive(folder, _process(index))
    return found


def load_objective(objective: nn.Module, folder: Path) -> None:
    """Load the weights of projections and losses into ``objective``.

    Raises: ``RunError`` if they are incompatible, or if the file does not match its checksum.
    """
    check_file(folder / _OBJECTIVE)
    read_weights(objective, folder / _OBJECTIVE, "objective")


def load_both(student: nn.Module, objective: nn.Module, folder: Path) -> dict[str, str]:
    """Load the weights of a verified checkpoint into ``student`` and ``objective``.

    Returns digests of the student's frozen weights, which the checkpoint does not hold, for ``check_frozen``.

    Raises: ``RunError`` if they are incompatible.
    """
    read_weights(objective, folder / _OBJECTIVE, "objective")
    return read_weights(student, student_file(folder), "student")


def _process(index: int) -> str:
    return f"process-{index}"


def _rename(temporary: Path, target: Path) -> None:
    """Rename a folder to ``target``; an existing ``target`` is moved aside first and deleted afterwards."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = set_aside(target)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    delete(aside)


def _flush(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
