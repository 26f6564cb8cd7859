"""What a distiller is made of, checked when it is made: later it would fail far from where it was written."""

from __future__ import annotations

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.errors import ConfigError


def check_training(config: object) -> None:
    """Raises: ``ConfigError`` for anything but a ``TrainingConfig``."""
    _check_config("train_config", config, TrainingConfig)


def check_distillation(config: object) -> None:
    """Raises: ``ConfigError`` for anything but a ``DistillationConfig``."""
    _check_config("distill_config", config, DistillationConfig)


def check_side(field: str, model: object, adaptor_field: str, adaptor: object) -> None:
    """Raises: ``ConfigError`` for a model that is no module, or an adaptor that cannot be called."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"must be a model, got {type(model).__name__}", field=field)
    if adaptor is not None and not callable(adaptor):
        raise ConfigError(f"must be a callable, got {type(adaptor).__name__}", field=adaptor_field)


def _check_config(field: str, config: object, kind: type) -> None:
    if not isinstance(config, kind):
        raise ConfigError(
            f"must be a {kind.__name__}, got {type(config).__name__}: {kind.__name__}.from_dict reads a mapping",
            field=field,
        )
