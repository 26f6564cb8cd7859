"""The student's weights on disk: whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from kdplug.errors import RunError

STUDENT = "student.safetensors"
"""The name of the file that holds the student's weights."""


def save_student(student: nn.Module, output_dir: Path, step: int) -> Path:
    """Write ``output_dir/step-{step}/student.safetensors`` and return its path.

    The folder appears complete or not at all: it is written under a temporary name, flushed to disk, then renamed.
    One that is there already is replaced. Tensors that are shared (tied weights) are stored once; ``load_student`` and
    ``safetensors.torch.load_model`` put them back.

    Raises: ``RunError`` where the state dict holds something that is not a tensor.
    """
    for name, value in student.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise RunError(
                f"the student's state dict holds {name!r}, a {type(value).__name__}; only tensors can be saved"
            )
    target = output_dir / f"step-{step}"
    temporary = output_dir / f".step-{step}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_model(student, str(temporary / STUDENT))
        _flush(temporary / STUDENT)
        _flush(temporary)
        _rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(output_dir)
    return target / STUDENT


def load_student(student: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a checkpoint, its folder or its file, into ``student``.

    Raises: ``RunError`` where they do not fit.
    """
    file = Path(path)
    file = file / STUDENT if file.is_dir() else file
    try:
        load_model(student, str(file))
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the student: {error}") from error


def _rename(temporary: Path, target: Path) -> None:
    """Rename a folder onto ``target``; a folder that stands there is moved aside first and deleted after."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
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
