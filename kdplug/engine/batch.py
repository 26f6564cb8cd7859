"""What a loader yields, split between teacher and student, moved to the device and handed to a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from kdplug.contracts.tagged import Tagged

_SEQUENCES = (tuple, list)
"""The commonest batches are told by their type alone, at a fraction of what asking for an instance costs."""


class Parts(NamedTuple):
    """A batch as each side gets it; ``cache`` stands in for the teacher's outputs where the batch brings them."""

    teacher: Any
    student: Any
    cache: Any = None


def split(batch: Any) -> Parts:
    """Divide ``{"teacher": …, "student": …}`` batches; any other batch goes to both sides whole.

    A third key ``teacher_cache`` holds what the teacher would have returned. Both parts of a tagged batch are tagged.
    """
    if type(batch) in _SEQUENCES:
        return Parts(batch, batch)
    if isinstance(batch, Tagged):
        teacher, student, cache = split(batch.value)
        return Parts(Tagged(batch.task, teacher), Tagged(batch.task, student), cache)
    if isinstance(batch, Mapping) and "teacher" in batch and "student" in batch:
        return Parts(batch["teacher"], batch["student"], batch.get("teacher_cache"))
    return Parts(batch, batch)


def call(model: Callable[..., Any], batch: Any, model_args: Mapping[str, Any]) -> Any:
    """Call ``model`` with ``batch``: a mapping by keyword, a list or tuple by position, anything else as one argument.

    A ``PackedSequence`` is one argument, though Python calls it a tuple. No model sees the tag of a batch.
    """
    if type(batch) in _SEQUENCES:
        return model(*batch, **model_args)
    if isinstance(batch, Tagged):
        batch = batch.value
    if isinstance(batch, Mapping):
        return model(**batch, **model_args)
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        return model(*batch, **model_args)
    return model(batch, **model_args)


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in it on ``device``, in containers of the types they came in.

    What knows how to move itself (``.to``) does: tensors, ``PackedSequence``, transformers' ``BatchEncoding``.
    Named tuples, mappings (``ModelOutput``, ``defaultdict``, …) and dataclasses keep their types; other objects pass through.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (str, bytes, torch.nn.Module)):
        return value
    if callable(getattr(value, "to", None)):
        return value.to(device)
    return _moved_items(value, device)


def _moved_items(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return _rebuild(value, {key: to_device(item, device) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    return value


def _rebuild(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of ``original``'s type that holds ``items``."""
    if type(original) is dict:
        return items
    try:
        rebuilt: Any = copy.copy(original)
        for key, item in items.items():
            rebuilt[key] = item
    except TypeError:  # an immutable mapping
        return items
    return rebuilt
