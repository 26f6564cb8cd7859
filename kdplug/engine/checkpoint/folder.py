"""Find the checkpoint folders that runs wrote in an output folder, and delete them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from kdplug.engine.checkpoint.archive import CHECKSUMS
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json

OBJECTIVE = "objective.safetensors"
"""The file of a checkpoint that holds the objective's weights."""

TEACHER = "teacher.safetensors"
"""The file of a checkpoint that holds the weights of a teacher that the run updates."""

RUN = "run"
"""The archive of a checkpoint that holds the state of the run."""

_NAME = re.compile(r"step-(0|[1-9][0-9]*)")


def steps(output_dir: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in ``output_dir``, damaged ones too, oldest step first. What no run wrote is left out."""
    return [(step, path) for step, path in places(output_dir) if _is_written(path)]


def places(output_dir: Path) -> list[tuple[int, Path]]:
    """Return everything in ``output_dir`` that has the name of a checkpoint, oldest step first."""
    found = output_dir.iterdir() if output_dir.is_dir() else ()
    return sorted((int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name)))


def step_of(folder: Path) -> int | None:
    """Return the step of a checkpoint, or ``None`` if ``folder`` does not have the name of one."""
    match = _NAME.fullmatch(folder.name)
    return None if match is None else int(match[1])


def check_replaceable(path: Path) -> None:
    """Raise ``RunError`` if a checkpoint at ``path`` would replace something that no run wrote."""
    if os.path.lexists(path) and not _is_written(path):
        raise RunError(
            f"{str(path)!r} was not written by a run, and a checkpoint would replace it. Choose another output_dir, or "
            f"move {path.name}",
            field="output_dir",
        )


def run_of(path: Path) -> str | None:
    """Return the name of the run that wrote a checkpoint, or ``None`` if its ``run.json`` does not hold one."""
    found = _content(path / f"{RUN}.json")
    name, step = found.get("run"), found.get("step")
    return name if isinstance(name, str) and isinstance(step, int) else None


def _is_written(path: Path) -> bool:
    """Return whether a run wrote ``path``; a damaged checkpoint still has its checksums or both files of ``RUN``."""
    listed = _content(path / CHECKSUMS)
    if OBJECTIVE in listed and f"{RUN}.json" in listed:
        return True
    return (path / f"{RUN}.safetensors").is_file() and run_of(path) is not None


def _content(file: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file, empty if it holds none."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def discard(folder: Path) -> None:
    """Delete a checkpoint. A kill leaves it complete, or under a temporary name that the next run deletes."""
    delete(set_aside(folder))


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint to a temporary name, and return that."""
    aside = folder.with_name(f".{folder.name}.old")
    delete(aside)
    return folder.rename(aside)


def delete(path: Path) -> None:
    """Delete a folder, a file or a link, if it exists; the target of a link is kept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
