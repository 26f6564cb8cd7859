"""The side that is read and never trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from kdplug.engine.pair import Adaptor, captured
from kdplug.objective.capture import Capture
from kdplug.objective.fixed_teacher import FixedTeacher

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


class TeacherSide(Protocol):
    """One teacher or several, asked together. ``model`` holds all of their modules."""

    model: nn.Module

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any: ...

    def to(self, device: torch.device) -> None: ...

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]: ...

    def hooked(self, objective: Any) -> AbstractContextManager[None]: ...


class Teacher:
    """A model that is asked for its outputs under ``no_grad``, after its adaptor.

    Not inference mode: nearly every loss saves the teacher's tensors for its backward pass, which autograd refuses
    for inference tensors, and copying them costs more than the mode saves.

    While it is ``frozen()``, each pass is checked to leave the model in eval mode, and the first ones its parameters and
    buffers unchanged.
    ``name`` is what messages call it.
    """

    def __init__(self, model: nn.Module, adaptor: Adaptor | None = None, name: str = "teacher") -> None:
        self.model = model
        self.adaptor = adaptor
        self.name = name
        self.capture: Capture | None = None
        self._fixed: FixedTeacher | None = None

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any:
        """What the objective reads of the teacher. ``cache`` stands in for the model's outputs where it is given.

        Raises: ``RunError`` where the model is in train mode, or changes its parameters or buffers.
        """
        if precision is None and cache is None:
            with torch.set_grad_enabled(False):  # as no_grad, which takes longer to make
                return self._asked(batch, model_args)
        with torch.no_grad(), precision or nullcontext():
            if cache is None:
                return self._asked(batch, model_args)
            return cache if self.adaptor is None else self.adaptor(batch, cache)

    def _asked(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        fixed = self._fixed
        if fixed is None:
            return captured(self.capture, self.model, self.adaptor, batch, model_args)
        if fixed.watches_values:
            fixed.before()
        outputs = captured(self.capture, self.model, self.adaptor, batch, model_args)
        fixed.after()
        return outputs

    def to(self, device: torch.device) -> None:
        """Move the model, unless it was spread over devices when it was loaded."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Inside the block, the modules that the objective's matches name are read whenever the teacher is asked."""
        objective.connect(teacher=self.model)
        with self.capturing(objective.paths("teacher")):
            yield

    @contextmanager
    def capturing(self, paths: Iterable[str]) -> Iterator[None]:
        """Inside the block, what is computed at ``paths`` is read whenever the teacher is asked."""
        self.capture = Capture(self.model, paths, "teacher")
        try:
            with self.capture.hooked():
                yield
        finally:
            self.capture = None

    @contextmanager
    def frozen(self, student: nn.Module | None = None) -> Iterator[None]:
        """No parameter of the teacher asks for a gradient inside, and its passes are checked; afterwards those that did do again.

        Memory that it shares with ``student`` may not be written to at all.
        """
        before, self._fixed = self._fixed, FixedTeacher(self.model, self.name, student)
        trainable = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        for name in trainable:
            self.model.get_parameter(name).requires_grad_(False)
        try:
            yield
        finally:
            self._fixed = before
            for name in trainable:  # by name: sharding puts other parameters in their place
                self.model.get_parameter(name).requires_grad_(True)
