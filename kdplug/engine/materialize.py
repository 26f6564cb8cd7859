"""Projections whose widths are only known once the models have spoken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kdplug.engine.batch import split, to_device
from kdplug.engine.mode import modes
from kdplug.engine.pair import Pair
from kdplug.engine.teacher import TeacherSide


def materialize(
    pair: Pair, teacher: TeacherSide | None, batch: Any, model_args: Mapping[str, Any], device: torch.device
) -> None:
    """Make the objective's ``auto`` projections fit what both models return for ``batch``.

    Both run once, without gradient and in eval mode; random state and batch statistics stay as they are.
    """
    parts = split(batch)
    with torch.random.fork_rng(_devices(device)), torch.no_grad(), modes(evaluating=pair):
        read = None
        if teacher is not None:
            read = teacher(to_device(parts.teacher, device), model_args, to_device(parts.cache, device))
        outputs = pair.outputs(to_device(parts.student, device), model_args)
    pair.objective.materialize(student=outputs, teacher=read)
    pair.to(device)


def _devices(device: torch.device) -> list[int]:
    return [torch.cuda.current_device()] if device.type == "cuda" else []
