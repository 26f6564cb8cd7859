"""What the micro-batches that Lightning averages count, and whether a mean of their means is the mean of all."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule

from kdplug.engine.normalization import counts_of
from kdplug.errors import RunError
from kdplug.objective.report import LossReport


class EqualCounts:
    """Holds that every term counts the same in all micro-batches of a step: only then is what Lightning does right."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, ...]] | None = None
        self._step = -1

    def check(self, report: LossReport, step: int) -> None:
        """Raises: ``RunError`` where a term counts other than in the step's first micro-batch. Waits for the device."""
        counts = {name: tuple(map(float, parts)) for name, parts in counts_of(report).items()}
        if step != self._step or self._first is None:
            self._first, self._step = counts, step
            return
        for name, parts in counts.items():
            if parts != self._first.get(name):
                raise RunError(
                    f"{name} is a mean over {_shown(parts)} items in this micro-batch and over "
                    f"{_shown(self._first.get(name, ()))} in the first one of the step. Lightning takes the mean of both means, "
                    "which is not that of the whole batch. normalization='micro_batch' accepts that; DistillationTrainer and "
                    "GeneralDistiller divide by the count of all"
                )


def _shown(parts: tuple[float, ...]) -> str:
    return " and ".join(f"{part:g}" for part in parts) or "no"


class LightningProcesses:
    """Lightning's processes, for adding counts up."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module

    @property
    def device(self) -> torch.device:
        return self._module.device

    @property
    def num_processes(self) -> int:
        return self._module.trainer.world_size

    def reduce(self, tensor: Any, reduction: str) -> Any:
        return self._module.trainer.strategy.reduce(tensor, reduce_op=reduction)
