"""Matches written in Python, for losses that a config cannot express."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdplug.config.error_path import prefixed
from kdplug.config.layer import read_path
from kdplug.errors import ConfigError
from kdplug.objective.capture.path import Modules
from kdplug.objective.custom_term import CustomTerm


@dataclass(frozen=True, slots=True, eq=False)
class CustomMatch:
    """``loss(S, T, mask_S, mask_T)`` between the outputs of a student module and a teacher module.

    * ``module_T`` and ``module_S`` are modules, or paths like ``layer_T`` and ``layer_S`` in a config.
    * ``weight`` is a number of at least 0; with 0 the match is skipped.
    * ``loss`` is called by position with the two tensors, the student's after its projection, and the ``inputs_mask``
      that each adaptor returned, or ``None``. It returns a scalar or a ``kdplug.LossSum``.
    * ``proj_func`` maps the student's tensor. If it is a module, its parameters are trained, and ``proj_group`` holds
      the options of their optimizer group.

    The equivalent in a config is a match with paths, a registered loss with ``student_mask`` and ``teacher_mask``
    parameters, and ``proj``.
    """

    module_T: str | nn.Module  # noqa: N815  TextBrewer's name
    module_S: str | nn.Module  # noqa: N815  TextBrewer's name
    weight: float
    loss: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Any]
    proj_func: Callable[[Tensor], Tensor] | None = None
    proj_group: Mapping[str, Any] | None = None
    name: str | None = None

    def term(self, place: int, teacher: nn.Module, student: nn.Module) -> CustomTerm:
        """Return the objective term. ``place`` is the index of the match in its list, for messages and names.

        Raises: ``ConfigError`` for a module that is not part of its model, and for objects that are not callable.
        """
        with prefixed("custom_matches", place):
            if not callable(self.loss):
                raise ConfigError(f"must be a callable, got {type(self.loss).__name__}", field="loss")
            if self.proj_func is not None and not callable(self.proj_func):
                raise ConfigError(
                    f"must be a module or a function, got {type(self.proj_func).__name__}", field="proj_func"
                )
            if self.proj_group and not isinstance(self.proj_func, nn.Module):
                raise ConfigError(
                    "has no effect: proj_func is not a module, so it has no parameters to train", field="proj_group"
                )
            return CustomTerm(
                self.name or f"custom_match_{place}",
                layer_student=_path(self.module_S, Modules(student, "student"), "module_S"),
                layer_teacher=_path(self.module_T, Modules(teacher, "teacher"), "module_T"),
                loss=self.loss,
                weight=self.weight,
                projection=self.proj_func,
                options=self.proj_group,
            )


def _path(module: object, modules: Modules, field: str) -> str:
    with prefixed(field):
        if isinstance(module, nn.Module):
            return modules.name_of(module)
        if not isinstance(module, str):
            raise ConfigError(f"must be a module or its path, got {type(module).__name__}")
        read_path(module)
        return str(modules.expand(module, listed=False))
