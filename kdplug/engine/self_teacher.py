"""Use the student, with its adapters switched off, as the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdplug.contracts.teacher import SwitchesAdapters
from kdplug.contracts.tree import tensors
from kdplug.engine.forward_state import modes
from kdplug.engine.teacher import AbsentModel
from kdplug.engine.training_module import Adaptor, captured, owned
from kdplug.errors import ConfigError, RunError
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.objective import Objective

SELF = "self"
"""Value of ``model_T``, and of a recipe's ``teacher``, for the student with its adapters off."""


class SelfTeacher:
    """The student in eval mode with its adapters off. It takes no additional memory.

    Raises: ``ConfigError`` for a student without ``disable_adapter()``, or with batch norm, whose statistics change.
    """

    def __init__(self, student: nn.Module, adaptor: Adaptor | None = None) -> None:
        if not isinstance(student, SwitchesAdapters):
            raise ConfigError(
                f"is self, but the student, a {type(student).__name__}, has no disable_adapter(), which peft's models have. Wrap "
                "it with peft.get_peft_model, or pass another teacher",
                field="model_T",
            )
        norms = [
            name for name, one in student.named_modules() if isinstance(one, _NormBase) and one.track_running_stats
        ]
        if norms:
            raise ConfigError(
                f"is self, but training changes the running statistics of the student's batch norm {norms[0]!r}, which the teacher "
                "would read. Pass a copy of the model without adapters",
                field="model_T",
            )
        self.model: nn.Module = AbsentModel()
        self.student: Any = student
        self.adaptor = adaptor
        self.capture: Capture | None = None
        self._is_checked = False

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """Return the outputs of the student without its adapters. ``cache``, if given, replaces those of the model.

        Raises: ``RunError`` in the first pass if a parameter that is trained takes part.
        """
        if cache is not None:
            return cache if self.adaptor is None else owned(self.adaptor(batch, cache))
        with precision or nullcontext():
            if not self._is_checked:
                self._check(batch, model_args)
            with torch.no_grad():
                return self._outputs(batch, model_args)

    def _outputs(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        with modes(evaluating=self.student), self.student.disable_adapter():
            return captured(self.capture, self.student, self.adaptor, batch, model_args)

    def _check(self, batch: Any, model_args: Mapping[str, Any]) -> None:
        """Run one pass with gradient, and see which parameters take part."""
        trained = {name: one for name, one in self.student.named_parameters() if one.requires_grad}
        with torch.enable_grad():
            found = self._outputs(batch, model_args)
        sums = [one.float().sum() for one in tensors(found) if one.requires_grad]
        self._is_checked = True
        if not sums or not trained:
            return
        gradients = torch.autograd.grad(sums, list(trained.values()), allow_unused=True)
        if names := [name for name, one in zip(trained, gradients, strict=True) if one is not None]:
            more = f" and {len(names) - 1} more take" if len(names) > 1 else " takes"
            raise RunError(
                f"the student's {names[0]!r}{more} part in a pass with the adapters off, and training changes it, so the teacher "
                "would change. Set requires_grad=False for everything but the adapters",
                field="model_T",
            )

    def check(self, accelerator: Accelerator) -> None:
        """Raise ``RunError`` under FSDP."""
        if accelerator.is_fsdp2:
            raise RunError(
                "is self, which FSDP does not support, since it divides the student's parameters among the processes. Use DDP, or "
                "pass a copy of the model without adapters",
                field="model_T",
            )

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Return the parameters that are not trained, and the buffers, by name: what the outputs depend on."""
        found = {name: one for name, one in self.student.named_parameters() if not one.requires_grad}
        return found | dict(self.student.named_buffers())

    def to(self, device: torch.device) -> None:
        """Do nothing: the student moves itself."""

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]:  # noqa: ARG002  a teacher's
        return nullcontext()

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Inside the block, capture the modules that the objective's matches name whenever the teacher runs."""
        objective.connect(teacher=self.student)
        self.capture = Capture(self.student, objective.paths("teacher"), "teacher")
        try:
            with self.capture.hooked():
                yield
        finally:
            self.capture = None
