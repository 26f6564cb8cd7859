"""The teacher that is not there: what it said is in a cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import nn

from kdplug.engine.pair import Adaptor
from kdplug.errors import RunError


class NoModel(nn.Module):
    """The model of a teacher that is not there: it has no parameters and is never called."""


class Absent:
    """Stands where a teacher would. Its adaptor is known, since what it returned is in the cache."""

    def __init__(self, adaptor: Adaptor | None = None) -> None:
        self.model: nn.Module = NoModel()
        self.adaptor = adaptor

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises: ``RunError``, always."""
        raise RunError("there is no teacher to ask, and no cache says what it would have returned")

    def to(self, device: torch.device) -> None:
        pass

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]:  # noqa: ARG002  a teacher's
        return nullcontext()

    def hooked(self, objective: Any) -> AbstractContextManager[None]:  # noqa: ARG002  a teacher's
        return nullcontext()
