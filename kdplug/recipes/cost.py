"""Cost of a training run: its seconds, summed over the processes that took part, and its peak memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdplug.host.bounded_json import json_value
from kdplug.recipes.arm import SECONDS

if TYPE_CHECKING:
    from kdplug.engine.run import Run
    from kdplug.objective.report import LossReport

_EVERY = 1.0
"""Seconds between two lines of the file."""


class Clock:
    """Observer that writes optimizer step and seconds of a run to its folder, about once a second and at the end.

    ``before`` holds the seconds of earlier processes up to the step at which this one resumed, ``None`` if they are unknown.
    """

    def __init__(self) -> None:
        self.before: float | None = 0.0
        self._path = Path(SECONDS)
        self._start = self._written = 0.0
        self._resumed_at = 0

    def run_start(self, run: Run) -> None:
        """Read the seconds of the completed steps, and drop those of later ones."""
        self._path = run.output_dir / SECONDS
        known = list(_lines(self._path))
        kept = [line for line in known if line[0] <= run.step] if run.step else []
        self.before, self._resumed_at = kept[-1][1] if kept else None if run.step else 0.0, run.step
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if kept != known or not self._path.is_file():
            self._path.write_text("".join(_text(*line) for line in kept), encoding="utf-8")
        self._start = self._written = time.monotonic()

    def step_end(self, run: Run, step: int, report: LossReport) -> None:  # noqa: ARG002
        """Write the seconds if the last line is old enough."""
        if time.monotonic() - self._written >= _EVERY:
            self._write(step)

    def run_end(self, run: Run, error: BaseException | None) -> None:  # noqa: ARG002
        """Write the seconds of this process, if it took a step."""
        if run.step > self._resumed_at:
            self._write(run.step)

    def _write(self, step: int) -> None:
        self._written = time.monotonic()
        if self.before is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_text(step, self.before + self._written - self._start))


def seconds_of(folder: Path) -> float | None:
    """Return the seconds of the run in ``folder``, of all its processes; ``None`` if unknown."""
    *_, last = None, *_lines(folder / SECONDS)
    return None if last is None else last[1]


def _lines(path: Path) -> Iterator[tuple[int, float]]:
    """Yield step and seconds of each line, up to the first that is truncated or damaged."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json_value(text)
            yield int(line["step"]), float(line["seconds"])
        except (ValueError, KeyError, TypeError):
            return


def _text(step: int, seconds: float) -> str:
    return json.dumps({"step": step, "seconds": round(seconds, 3)}) + "\n"


def reset_peak_memory() -> None:
    """Start to measure the peak memory of the accelerator again. That of a process on a CPU cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(model: nn.Module) -> int | None:
    """Return the largest number of bytes in use: on the model's accelerator, otherwise by this process since its start."""
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_cuda:
        return torch.cuda.max_memory_allocated(parameter.device)
    if sys.platform == "win32":  # it has no module resource
        return None
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
