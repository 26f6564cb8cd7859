"""Write every term of every step into ``steplog.jsonl`` in the run's folder."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kdplug

FILE = "steplog.jsonl"
EVERY = "KDPLUG_STEPLOG_EVERY"
DEFAULT_EVERY = 50


@dataclass
class _Log:
    """The log file of one run, and its unwritten steps: number, progress, term names and values."""

    path: Path
    every: int
    waiting: list[tuple[int, float, tuple[str, ...], list[Tensor]]] = field(default_factory=list)

    def start(self, step: int) -> None:
        """Create the file; in a resumed run, keep the steps up to the checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        old = self.path.read_text(encoding="utf-8").splitlines() if step and self.path.exists() else []
        kept = [line for line in old if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def flush(self) -> None:
        """Read the waiting tensors at once and write them."""
        if not self.waiting:
            return
        values = torch.stack([value for *_, values in self.waiting for value in values]).tolist()
        lines = []
        for step, progress, names, tensors in self.waiting:
            own, values = values[: len(tensors)], values[len(tensors) :]
            row = {"step": step, "progress": round(progress, 4)}
            row |= {name: _plain(value) for name, value in zip(names, own, strict=True)}
            lines.append(f"{json.dumps(row)}\n")
        self.waiting.clear()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)


class StepLog:
    """The hooks. State of a run is kept from its start to its end."""

    def __init__(self) -> None:
        self.running: dict[int, _Log] = {}

    @kdplug.hookimpl
    def kdplug_run_start(self, run: Any) -> None:
        """Open the log of a run on its first process."""
        if run.is_main:
            log = _Log(Path(run.output_dir) / FILE, int(os.environ.get(EVERY, DEFAULT_EVERY)))
            log.start(run.step)
            self.running[id(run)] = log

    @kdplug.hookimpl
    def kdplug_step_end(self, run: Any, step: int, report: Any) -> None:
        """Keep the step's values as tensors; read and write them in batches."""
        log = self.running.get(id(run))
        if log is None:
            return
        values = {"total": report.total, **{name: term.value for name, term in report.terms.items()}}
        tensors = [value.detach().float().reshape(()) for value in values.values()]
        log.waiting.append((step, run.progress, tuple(values), tensors))
        if len(log.waiting) >= log.every:
            log.flush()

    @kdplug.hookimpl
    def kdplug_run_end(self, run: Any) -> None:
        """Write the remaining steps, also after a failure."""
        log = self.running.pop(id(run), None)
        if log is not None:
            log.flush()


def _plain(value: float) -> float | str:
    """Round to the digits of float32; ``nan`` and infinities, which JSON lacks, become text."""
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)


steplog = StepLog()
