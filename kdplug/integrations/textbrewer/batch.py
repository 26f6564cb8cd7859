"""A batch on its way through the two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["auto_forward", "get_outputs_from_batch", "move_to_device"]


def move_to_device(batch: Any, device: Any) -> Any:
    """The batch with every tensor on ``device``: sequences come back as tuples and mappings as dicts.

    A named tuple keeps its type, and so does what can move itself, such as a ``PackedSequence``.
    """
    if isinstance(batch, torch.Tensor) or _moves_itself(batch):
        return batch.to(device)
    if isinstance(batch, tuple) and type(batch) is not tuple:
        return type(batch)(*(move_to_device(item, device) for item in batch))
    if isinstance(batch, (list, tuple)):
        return tuple(move_to_device(item, device) for item in batch)
    if isinstance(batch, Mapping):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    return batch


def _moves_itself(batch: Any) -> bool:
    return isinstance(batch, torch.nn.utils.rnn.PackedSequence)


def auto_forward(model: Any, batch: Any, args: Mapping[str, Any]) -> Any:
    """The outputs of a model, or of each one of a list or a dict of them."""
    if isinstance(model, (list, tuple, torch.nn.ModuleList)):
        return [_forward(one, batch, args) for one in model]
    if isinstance(model, (dict, torch.nn.ModuleDict)):
        return {name: _forward(one, batch, args) for name, one in model.items()}
    return _forward(model, batch, args)


def _forward(model: Any, batch: Any, args: Mapping[str, Any]) -> Any:
    return model(**batch, **args) if isinstance(batch, Mapping) else model(*batch, **args)


def teacher_part(batch: Any) -> Any:
    """What the teacher sees of a batch."""
    return batch["teacher"] if is_two_sided(batch) else batch


def is_two_sided(batch: Any) -> bool:
    """Whether a batch holds one part for each model."""
    return isinstance(batch, Mapping) and "teacher" in batch and "student" in batch


def get_outputs_from_batch(
    batch: Any, device: Any, model_T: Any, model_S: Any, args: Mapping[str, Any], no_teacher_forward: bool = False
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """``((the teacher's batch, its outputs), (the student's batch, its outputs))``, everything on ``device``.

    In a batch with the keys ``teacher`` and ``student`` each model has its own part, and what stands under
    ``teacher_cache`` is taken for the teacher's outputs. The teacher runs first, without gradient, unless
    ``no_teacher_forward``; its outputs are then ``None``.
    """
    if is_two_sided(batch):
        teacher_batch = move_to_device(batch["teacher"], device)
        student_batch = move_to_device(batch["student"], device)
    else:
        teacher_batch = student_batch = move_to_device(batch, device)
    results_T = None
    if not no_teacher_forward:
        if is_two_sided(batch) and "teacher_cache" in batch:
            results_T = move_to_device(batch["teacher_cache"], device)
        else:
            with torch.no_grad():
                results_T = auto_forward(model_T, teacher_batch, args)
    return (teacher_batch, results_T), (student_batch, _forward(model_S, student_batch, args))
