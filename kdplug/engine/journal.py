"""The losses of a run as one JSON line for each logged step, in ``output_dir/log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from kdplug.host.bounded_json import json_value

NAME = "log.jsonl"


class Journal:
    """Writes ``{"step": …, "total_loss": …, …}`` lines. Only the main process has a file."""

    def __init__(self, file: TextIOWrapper | None = None) -> None:
        self._file = file

    def write(self, values: Mapping[str, float], step: int) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()


@contextmanager
def journal(output_dir: Path, *, is_main: bool, after: int = 0) -> Iterator[Journal]:
    """The journal of a run that goes on after ``after`` steps; lines of later steps, from before a kill, are dropped."""
    if not is_main:
        yield Journal()
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / NAME
    kept = [line for line in _lines(path) if _step(line) <= after] if after else []
    temporary = path.with_name(f".{NAME}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
    with path.open("a", encoding="utf-8") as file:
        yield Journal(file)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _step(line: str) -> float:
    """The step of a line; a line that a kill cut short belongs to no step and comes after all."""
    try:
        return float(json_value(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
