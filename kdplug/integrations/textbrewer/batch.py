"""Run both models on a batch and call the adaptors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kdplug.contracts.loss import LossSum
from kdplug.contracts.vocabulary import ADAPTOR_KEYS, EXAMPLE_IDS
from kdplug.errors import OutputsError, did_you_mean
from kdplug.integrations.textbrewer.configurations import TrainingConfig
from kdplug.integrations.textbrewer.log import warn_once

__all__ = ["BasicAdaptor", "post_adaptor"]

_LISTS = ("logits", "logits_mask", "losses", "labels")


class BasicAdaptor:
    """Base class for adaptors that stores the batch and the outputs of the last call."""

    def __init__(self) -> None:
        self.batch: Any = None
        self.model_outputs: Any = None

    def __call__(self, batch: Any, model_outputs: Any) -> Any:
        self.batch = batch
        self.model_outputs = model_outputs


def post_adaptor(dict_object: dict[str, Any]) -> dict[str, Any]:
    """Return the same mapping, with a single tensor or ``LossSum`` wrapped in a list.

    This applies to ``logits``, ``logits_mask``, ``losses`` and ``labels``.

    Raises: ``OutputsError`` if it is not a mapping.
    """
    if not isinstance(dict_object, Mapping):
        raise OutputsError(
            f"an adaptor must return a dict whose keys are among {', '.join(ADAPTOR_KEYS)}, got {type(dict_object).__name__}"
        )
    for key in _LISTS:
        value = dict_object.get(key)
        if key in dict_object and (isinstance(value, LossSum) or not isinstance(value, (list, tuple))):
            dict_object[key] = [value]
    return dict_object


def adapted(adaptor: Any, batch: Any, outputs: Any, side: str) -> dict[str, Any]:
    """Call an adaptor. Unused keys are ignored, as in TextBrewer, with one warning each.

    Raises: ``OutputsError`` if the adaptor does not return a mapping.
    """
    found = post_adaptor(adaptor(batch, outputs))
    for key in found:
        if key not in ADAPTOR_KEYS:
            warn_once(f"{side} returned {key!r}, which has no effect.{did_you_mean(str(key), ADAPTOR_KEYS)}")
    return found


__all__ = ["auto_forward", "get_outputs_from_batch", "move_to_device"]


def move_to_device(batch: Any, device: Any) -> Any:
    """Return the batch with every tensor on ``device``; lists become tuples, and mappings become dicts.

    Named tuples and ``PackedSequence`` keep their type.
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
    """Return the outputs of a model, or of each model in a list or dict."""
    if isinstance(model, (list, tuple, torch.nn.ModuleList)):
        return [_forward(one, batch, args) for one in model]
    if isinstance(model, (dict, torch.nn.ModuleDict)):
        return {name: _forward(one, batch, args) for name, one in model.items()}
    return _forward(model, batch, args)


def _forward(model: Any, batch: Any, args: Mapping[str, Any]) -> Any:
    return model(**batch, **args) if isinstance(batch, Mapping) else model(*batch, **args)


def teacher_part(batch: Any) -> Any:
    """Return the teacher's part of a batch."""
    return batch["teacher"] if is_two_sided(batch) else batch


def is_two_sided(batch: Any) -> bool:
    """Return whether a batch holds a separate part for each model."""
    return isinstance(batch, Mapping) and "teacher" in batch and "student" in batch


def without_ids(batch: Any) -> tuple[Any, Any]:
    """Return the batch without its key ``example_ids``, which models do not get, and the ids; ``None`` if there are none."""
    if not isinstance(batch, Mapping):
        return batch, None
    ids = batch.get(EXAMPLE_IDS)
    rest = {key: value for key, value in batch.items() if key != EXAMPLE_IDS}
    if is_two_sided(batch):
        rest["teacher"], _ = without_ids(batch["teacher"])
        rest["student"], inner = without_ids(batch["student"])
        ids = inner if ids is None else ids
    return rest, ids


def get_outputs_from_batch(
    batch: Any, device: Any, model_T: Any, model_S: Any, args: Mapping[str, Any], no_teacher_forward: bool = False
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return ``((teacher batch, outputs), (student batch, outputs))``, everything on ``device``.

    In a batch with the keys ``teacher`` and ``student``, each model has its own part, and ``teacher_cache``, if
    present, replaces the teacher's outputs. The teacher runs first, without gradient; with ``no_teacher_forward`` it
    does not run, and its outputs are ``None``.
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


def core_of(model: nn.Module) -> nn.Module:
    """Return the model without its ``DataParallel`` or ``DistributedDataParallel`` wrapper."""
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def trained_on_many(config: TrainingConfig, model: nn.Module) -> nn.Module:
    """Wrap a trained model for ``local_rank`` or ``data_parallel``, unless it is wrapped. DDP skips frozen models."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return model
    if config.local_rank != -1:
        if not has_parameters(model):
            return model
        devices = [config.local_rank] if torch.device(config.device).type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)
    return DataParallel(model) if config.data_parallel else model


def has_parameters(model: nn.Module) -> bool:
    """Return whether a model has trainable parameters."""
    return any(parameter.requires_grad for parameter in model.parameters())


def read_on_many(config: TrainingConfig, model: Any) -> Any:
    """Wrap a teacher, or each teacher in a list or dict, for ``data_parallel``; ``local_rank`` needs no wrapper."""
    if config.local_rank != -1 or not config.data_parallel:
        return model
    if isinstance(model, (list, tuple, nn.ModuleList)):
        return [read_on_many(config, one) for one in model]
    if isinstance(model, (dict, nn.ModuleDict)):
        return {name: read_on_many(config, one) for name, one in model.items()}
    return trained_on_many(config, model)


__all__ = ["DistillationContext"]


class DistillationContext:
    """Sets the teachers to eval mode and the student to train mode for the block, and restores the modes afterwards."""

    def __init__(self) -> None:
        self.model_S: Any = None
        self.model_T: Any = None
        self._modes: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> Self:
        self._modes = [
            (module, module.training)
            for model in (*_each(self.model_T), *_each(self.model_S))
            for module in model.modules()
        ]
        for model in _each(self.model_T):
            model.eval()
        for model in _each(self.model_S):
            model.train()
        return self

    def __exit__(self, *error: object) -> None:
        for module, training in self._modes:
            module.training = training


def _each(models: Any) -> Iterator[nn.Module]:
    if isinstance(models, (list, tuple, nn.ModuleList)):
        yield from models
    elif isinstance(models, (dict, nn.ModuleDict)):
        yield from models.values()
    else:
        yield models
