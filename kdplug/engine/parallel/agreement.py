"""Compare the model outputs for the first batch between processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from kdplug.contracts.outputs import Outputs, Tagged
from kdplug.contracts.vocabulary import EXTRAS
from kdplug.errors import RunError
from kdplug.objective.objective import Objective
from kdplug.objective.task_objective import TaskObjective
from kdplug.objective.teacher import read_teachers, side

Described = dict[str, int]
"""The number of tensors by side and adaptor key; missing keys are left out."""


@contextmanager
def outputs_compared(objective: Objective | TaskObjective, accelerator: Accelerator) -> Iterator[None]:
    """Inside the block, compare the outputs that ``objective`` gets on all processes, once, or once for each task.

    A mask that only one process returns would let the others train on padding.

    Raises: in the first call of ``objective``, on every process, a ``RunError`` that names the rank and the key.
    """
    if accelerator.num_processes == 1:
        yield
        return
    compared: set[str] = set()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def compare(_: nn.Module, __: tuple[Any, ...], sides: dict[str, Any]) -> None:
        task = sides["student"].task if isinstance(sides["student"], Tagged) else ""
        if task not in compared:
            compared.add(task)
            _check(_described(objective, sides["student"], sides["teacher"]), accelerator)

    hook = objective.register_forward_pre_hook(compare, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _described(objective: Objective | TaskObjective, student: Any, teacher: Any) -> Described:
    """Return the outputs that one batch has, without values."""
    if isinstance(objective, TaskObjective):
        task = student.task
        found = _described(objective.of(task), student.value, teacher.value)
        return {f"{task}.{key}": number for key, number in found.items()}
    names = [side(objective.teachers, place) for place in range(len(objective.teachers))]
    read = read_teachers(teacher, objective.teachers)
    sides = {"student": Outputs.read(student, "student"), **dict(zip(names, read, strict=True))}
    found = {
        f"{name}.{key}": 1 if isinstance(value := getattr(one, key), torch.Tensor) else len(value)
        for name, one in sides.items()
        for key in one.given
        if key != EXTRAS
    }
    return found | {f"{name}.{EXTRAS}.{key}": 1 for name, one in sides.items() for key in one.extras or ()}


def _check(found: Described, accelerator: Accelerator) -> None:
    every: list[Described] = [{}] * accelerator.num_processes
    torch.distributed.all_gather_object(every, found)
    lines = [
        f"rank {rank}: {key}: {_number(other.get(key))}, on rank 0 {_number(every[0].get(key))}"
        for rank, other in enumerate(every)
        for key in sorted(every[0].keys() | other.keys())
        if other.get(key) != every[0].get(key)
    ]
    if lines:
        raise RunError(
            "the processes do not have the same outputs in their first batch. Differences from rank 0:\n    "
            + "\n    ".join(lines)
            + "\nThe adaptor must return the same keys, with the same number of tensors, on every process: a mask of "
            "ones for a batch without padding, and an empty tensor for a head without items"
        )


def _number(count: int | None) -> str:
    return "missing" if count is None else "1 tensor" if count == 1 else f"{count} tensors"
