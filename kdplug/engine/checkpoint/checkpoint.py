"""Everything that a run needs to go on, on disk: whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kdplug.engine.checkpoint.archive import check_file, damage, read_archive, write_archive, write_checksums
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

STUDENT = "student.safetensors"
"""The name of the file that holds the student's weights."""

_logger = logging.getLogger("kdplug")

_OBJECTIVE = "objective.safetensors"
_RUN = "run"
_MARK = ".run"
_FOLDER = re.compile(r"step-(\d+)")


@dataclass(slots=True, eq=False)
class Checkpoints:
    """The checkpoints of one run: ``output_dir/step-{n}/``, of which the last ``keep`` stay (``None``: all), and step ``spare``.

    A folder appears complete or not at all: it is written under a temporary name, with a checksum for each file, flushed to
    disk, then renamed. ``run`` tells the checkpoints of this run from those that an earlier one left in the same folder.
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
        process. Tied weights are stored once; ``load_student`` and ``safetensors.torch.load_model`` put them back. Weights that
        are views of the same memory are stored one by one, which only ``load_student`` can load.

        Raises: ``RunError`` for what a checkpoint cannot hold, and where another run has started in ``output_dir``.
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
        write_checksums(temporary, sorted(temporary.iterdir()), _flush)
        _flush(temporary)
        self._check_mark()
        _rename(temporary, target)
        _flush(self.output_dir)
        if self.keep is not None:
            for step, folder in steps(self.output_dir)[: -self.keep]:
                if step < step_of(target) and step != self.spare:
                    _delete(folder)

    def _check_mark(self) -> None:
        """Raises: ``RunError`` where another run has started in ``output_dir`` since this one did."""
        mark = self.output_dir / _MARK
        if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") != _marker(self.run):
            raise RunError(
                f"another run has started in {str(self.output_dir)!r}, and each would overwrite the other's checkpoints. Give each "
                "run a folder of its own",
                field="output_dir",
            )


def begin(output_dir: Path, *, is_main: bool, name: str = "") -> str:
    """Mark ``output_dir`` as belonging to a run, a new one where it has no ``name`` yet, and return its name.

    What a kill left half written is deleted.

    Raises: ``RunError`` where the folder cannot be written.
    """
    name = name or uuid.uuid4().hex
    if is_main:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            for leftover in output_dir.glob(".step-*"):
                _delete(leftover)
            temporary = output_dir / f"{_MARK}.tmp"
            temporary.write_text(_marker(name), encoding="utf-8")
            _flush(temporary)
            temporary.replace(output_dir / _MARK)
        except OSError as error:
            raise RunError(f"cannot write into {str(output_dir)!r}: {error.strerror}", field="output_dir") from error
    return name


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """The checkpoints in ``output_dir``, oldest step first."""
    folders = output_dir.iterdir() if output_dir.is_dir() else ()
    found = [
        (int(match[1]), folder) for folder in folders if (match := _FOLDER.fullmatch(folder.name)) and folder.is_dir()
    ]
    return sorted(found)


def step_of(folder: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(folder.name.removeprefix("step-"))


def latest(output_dir: Path, *, warns: bool = True) -> Path | None:
    """The newest undamaged checkpoint of the last run in ``output_dir``, ``None`` where that run wrote none.

    Where it ``warns``, logs a warning that names each newer checkpoint that is damaged.

    Raises: ``RunError`` where all are damaged, or where the file that tells one run from another is damaged or missing.
    """
    name = _marked(output_dir)
    broken: list[str] = []
    for step, folder in reversed(steps(output_dir)) if name else ():
        if not (found := damage(folder, [f"{_RUN}.json"], only=True)):
            if _read_json(folder)["run"] != name:
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
            + "\nRestore one from a copy, or start again without resume"
        )
    return None


def check_whole(folder: Path) -> None:
    """Raises: ``RunError`` where ``folder`` is no checkpoint, or a damaged one; it names an undamaged one next to it."""
    named = _FOLDER.fullmatch(folder.name)
    if named is None and not (folder / STUDENT).is_file():
        there = ", ".join(path.name for _, path in steps(folder)) or "none"
        raise RunError(f"{folder} is no checkpoint that a run can go on from. Checkpoints in it: {there}")
    if found := _damage(folder, int(named[1]) if named else None):
        raise RunError(
            f"{folder} is damaged: {', '.join(found)}. The newest undamaged checkpoint next to it: {_other(folder) or 'none'}"
        )


def _other(folder: Path) -> str:
    """The name of the newest undamaged checkpoint next to ``folder``, empty where there is none."""
    for step, path in reversed(steps(folder.parent)):
        if path != folder and not _damage(path, step):
            return path.name
    return ""


def _damage(folder: Path, step: int | None) -> list[str]:
    """What is wrong with a checkpoint; ``step`` is the one in its name, if it has the name that it was written under."""
    names = [
        STUDENT,
        _OBJECTIVE,
        *(f"{name}.{ending}" for name in (_RUN, _process(0)) for ending in ("json", "safetensors")),
    ]
    found = damage(folder, names)
    if not found and step is not None and (written := _read_json(folder)["step"]) != step:
        return [f"it was written after step {written}"]
    return found


def _marker(name: str) -> str:
    return f"{name} {_checksum(name)}"


def _marked(output_dir: Path) -> str:
    """The name of the last run in ``output_dir``, empty where there was none."""
    mark = output_dir / _MARK
    if not mark.is_file():
        if there := steps(output_dir):
            raise RunError(
                f"{output_dir} holds {there[-1][1].name}, but not the file {_MARK}, which says which run its checkpoints are of. "
                f"Name the checkpoint (resume={str(there[-1][1])!r}), or start again without resume"
            )
        return ""
    name, _, checksum = mark.read_text(encoding="utf-8", errors="replace").rpartition(" ")
    if not name or checksum != _checksum(name):
        raise RunError(
            f"{mark}, which says which run the checkpoints next to it are of, is damaged. Name the checkpoint "
            "(resume='…/step-N'), or start again without resume"
        )
    return name


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _read_json(folder: Path) -> dict[str, Any]:
    """``run.json`` without its tensors. Its checksum has been compared."""
    found: dict[str, Any] = read_json(folder / f"{_RUN}.json")
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write`` was given as ``shared``, with ``step`` and ``run``.

    Raises: ``RunError`` where it cannot be read.
    """
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

    Raises: ``RunError`` where they do not fit, or where the file is not the one that was written.
    """
    file = Path(path)
    file = file / STUDENT if file.is_dir() else file
    check_file(file)
    _load(student, file, "student")


def load_objective(objective: nn.Module, folder: Path) -> None:
    """Put what projections and losses had learned into ``objective``.

    Raises: ``RunError`` where it does not fit, or where the file is not the one that was written.
    """
    check_file(folder / _OBJECTIVE)
    _load(objective, folder / _OBJECTIVE, "objective")


def load_both(student: nn.Module, objective: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint that is known to be undamaged into ``student`` and ``objective``.

    Raises: ``RunError`` where they do not fit.
    """
    _load(student, folder / STUDENT, "student")
    _load(objective, folder / _OBJECTIVE, "objective")


def _process(index: int) -> str:
    return f"process-{index}"


def _save(module: nn.Module, file: Path, owner: str) -> None:
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise RunError(
                f"the {owner}'s state dict holds {name!r}, a {type(value).__name__}; only tensors can be saved"
            )
    save_weights(module, file)


def save_weights(module: nn.Module, file: Path) -> None:
    """Write a state dict of tensors. Tied tensors are stored once, other ones that share memory each as a copy of its own."""
    stored: dict[str, torch.Tensor] = {}
    memories: set[int] = set()
    for name, value in _untied(module.state_dict()).items():
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if memory in memories else tensor
        memories.add(memory)
    save_file(stored, file)


def _untied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without those that are an earlier one, by name, under another name."""
    found: dict[Any, str] = {}
    for name in sorted(tensors):
        found.setdefault(_memory(tensors[name]) or name, name)
    return {name: tensors[name] for name in found.values()}


def _memory(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What is equal of two tensors only if they are the same one; ``None`` of a tensor without memory."""
    pointer = tensor.data_ptr()
    return (pointer, tensor.device, tensor.dtype, tensor.shape, tensor.stride()) if pointer else None


def _load(module: nn.Module, file: Path, owner: str) -> None:
    try:
        stored = load_file(file)
        own = module.state_dict()
        twins = {_memory(value): stored[name] for name, value in own.items() if name in stored}
        tied = {name: twins.get(_memory(value)) for name, value in own.items() if name not in stored and value.numel()}
        module.load_state_dict(stored | {name: value for name, value in tied.items() if value is not None})
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the {owner}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {file}: {error}") from error


def _rename(temporary: Path, target: Path) -> None:
    """Rename a folder onto ``target``; what is there is moved aside first and deleted after."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = target.with_name(f".{target.name}.old")
    _delete(aside)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _delete(aside)


def _delete(path: Path) -> None:
    """Delete a folder, a file or a link, if it exists; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
