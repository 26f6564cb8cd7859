"""Wrapping models for several devices, and finding the model inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kdplug.integrations.textbrewer.configurations import TrainingConfig


def core_of(model: nn.Module) -> nn.Module:
    """The model inside a wrapper of torch's, or the model itself."""
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def trained_on_many(config: TrainingConfig, model: nn.Module) -> nn.Module:
    """A model that is trained, wrapped as ``config`` asks, once. What has no trainable parameter is not wrapped."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return model
    if config.local_rank != -1:
        if not has_parameters(model):
            return model
        devices = [config.local_rank] if torch.device(config.device).type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)
    return DataParallel(model) if config.data_parallel else model


def has_parameters(model: nn.Module) -> bool:
    """Whether training would change anything of a model."""
    return any(parameter.requires_grad for parameter in model.parameters())


def read_on_many(config: TrainingConfig, model: Any) -> Any:
    """A teacher, or a list or dict of them: it has nothing to synchronize, and is wrapped for ``data_parallel``
    alone.
    """
    if config.local_rank != -1 or not config.data_parallel:
        return model
    if isinstance(model, (list, tuple, nn.ModuleList)):
        return [read_on_many(config, one) for one in model]
    if isinstance(model, (dict, nn.ModuleDict)):
        return {name: read_on_many(config, one) for name, one in model.items()}
    return trained_on_many(config, model)
