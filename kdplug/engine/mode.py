"""Train and eval modes for the length of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes(*, training: nn.Module | None = None, evaluating: nn.Module | None = None) -> Iterator[None]:
    """Put ``training`` in train mode and ``evaluating`` in eval mode; give every submodule its own mode back at the end.

    A submodule that both own ends up in eval mode.
    """
    found = [
        (module, module.training) for root in (training, evaluating) if root is not None for module in root.modules()
    ]
    if training is not None:
        training.train()
    if evaluating is not None:
        evaluating.eval()
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode
