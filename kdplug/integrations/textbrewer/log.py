"""Logging: TextBrewer's logger, and scalars for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from torch import Tensor

from kdplug.errors import RunError
from kdplug.integrations.textbrewer.configurations import TrainingConfig

logger = logging.getLogger("Distillation")


class Writer(Protocol):
    """Interface of a scalar writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one scalar."""


class no_op:  # noqa: N801  TextBrewer's name
    """A writer that writes nothing."""

    @staticmethod
    def add_scalar(*args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def make_writer(config: TrainingConfig) -> Writer:
    """Return a TensorBoard writer if ``log_dir`` is set and this is the first process; otherwise ``no_op``.

    Raises: ``RunError`` if TensorBoard is not installed.
    """
    if config.log_dir is None or config.rank:
        return no_op()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("log_dir is set, but tensorboard is not installed: pip install 'kdplug[tensorboard]'") from error
    writer: Writer = SummaryWriter(log_dir=str(config.log_dir))
    return writer


def write_terms(writer: Writer, total: Tensor, terms: Mapping[str, Any] | None, step: int) -> None:
    """Write the total and each term. With a ``no_op`` writer, values are not synchronized from the device."""
    if isinstance(writer, no_op):
        return
    for name, value in {"total_loss": total, **(terms or {})}.items():
        writer.add_scalar(f"scalar/{name}", value.item() if isinstance(value, Tensor) else float(value), step)


@lru_cache(maxsize=256)
def warn_once(message: str) -> None:
    """Log a warning, once per process."""
    logger.warning(message)
