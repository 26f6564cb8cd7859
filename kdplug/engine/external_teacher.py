"""Run a teacher that is not a PyTorch module, such as a model behind a server or in another runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.engine.teacher import AbsentModel
from kdplug.engine.training_module import to_device
from kdplug.errors import ConfigError, RunError, SignatureError
from kdplug.objective.objective import Objective


class TeacherCallError(RunError):
    """An external teacher failed on a batch. The run can be saved as it was before that batch."""


class CalledTeacher:
    """An external teacher: it is called with each batch, and returns what an adaptor returns."""

    adaptor = None

    def __init__(self, external: ExternalTeacher) -> None:
        self.model: nn.Module = AbsentModel()
        self.external = external
        self.owner = type(external).__qualname__
        self._device = torch.device("cpu")

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,  # noqa: ARG002  a module's
    ) -> Any:
        """Return the teacher's outputs on the device of the run. ``cache``, if given, replaces them.

        Raises: ``TeacherCallError`` if the teacher fails, or returns something else; ``RunError`` for ``model_args``.
        """
        if cache is not None:
            return cache
        if model_args:
            raise RunError(
                f"the teacher {self.owner} takes no model_args, so {', '.join(map(repr, model_args))} would not reach it. Put "
                "them into the batch, or into its settings"
            )
        try:
            with torch.no_grad():
                found = self.external(batch)
            return to_device(Outputs.read(found, "teacher").detached(), self._device)
        except Exception as error:
            raise TeacherCallError(
                f"the teacher {self.owner} failed on a batch: {type(error).__name__}: {error}".rstrip(". ")
            ) from error

    def fingerprint(self) -> dict[str, Any]:
        """Return the class of the teacher and its own fingerprint, as plain data.

        Raises: ``SignatureError`` if it is not plain; ``RunError`` if the teacher fails.
        """
        try:
            found = self.external.fingerprint()
        except Exception as error:
            raise RunError(
                f"the fingerprint of the teacher {self.owner} failed: {type(error).__name__}: {error}"
            ) from error
        try:
            return {"class": self.owner, "fingerprint": json.loads(json.dumps(found, sort_keys=True, allow_nan=False))}
        except (TypeError, ValueError) as error:
            raise SignatureError(
                f"the fingerprint of the teacher {self.owner} must be plain data that JSON can represent: {error}"
            ) from error

    def check(self, objective: Objective) -> None:
        """Raise ``ConfigError`` if a term reads modules or parameters of the teacher by path."""
        for term in objective.configured.terms():
            named, layers = term.named.paths["teacher"], term.layers("teacher")
            paths = [*named, *(layer for layer in layers if isinstance(layer, str))]
            if paths and term.reads_of_teacher:
                raise ConfigError(
                    f"{term.name} reads {paths[0]!r} of the teacher by path, but {self.owner} is not a PyTorch module. Make it return "
                    "the feature under 'hidden' or 'extras', and name it by index or with extras",
                    field="model_T",
                )

    def to(self, device: torch.device) -> None:
        self._device = device

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]:  # noqa: ARG002  a module's
        return nullcontext()

    def hooked(self, objective: Any) -> AbstractContextManager[None]:  # noqa: ARG002  a module's
        return nullcontext()
