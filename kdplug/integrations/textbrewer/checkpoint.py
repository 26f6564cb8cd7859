"""Checkpoints as TextBrewer writes them: ``gs{step}.pkl``, the student's state alone."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from kdplug.integrations.textbrewer.configurations import TrainingConfig
from kdplug.integrations.textbrewer.replica import core_of


def save(config: TrainingConfig, model: nn.Module, step: int) -> None:
    """Write the weights after ``step`` steps, in the first process; every other one waits for it.

    The file appears whole or not at all. ``torch.load`` reads it with ``weights_only=True``.
    """
    if config.rank == 0:
        path = Path(config.output_dir) / f"gs{step}.pkl"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(core_of(model).state_dict(), unfinished)
        unfinished.replace(path)
    if config.local_rank != -1:
        torch.distributed.barrier()


def steps_in_epoch(steps: int, frequency: int) -> frozenset[int]:
    """After which steps of an epoch of ``steps`` a checkpoint is due, 0 being the epoch's end."""
    return frozenset(int(steps * place / frequency) for place in range(frequency))
