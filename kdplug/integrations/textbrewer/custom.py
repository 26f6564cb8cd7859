"""Custom matches of a distiller: kdplug's own, read by hooks while a batch runs through the models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kdplug.contracts.outputs import Outputs
from kdplug.distillers.custom_match import CustomMatch
from kdplug.objective.batch import Batch
from kdplug.objective.capture import Capture
from kdplug.objective.custom_term import CustomTerm


class CustomMatches:
    """The terms of custom matches, and what reads the models for them.

    Raises: ``ConfigError`` for a module that is in no model.
    """

    def __init__(self, matches: Iterable[CustomMatch], teacher: Any, student: nn.Module, device: Any) -> None:
        self.terms: list[CustomTerm] = [
            match.term(place, teacher, student).to(device) for place, match in enumerate(matches)
        ]
        self.student = self.teacher = None
        if self.terms:
            self.student = Capture(student, (term.layer_student for term in self.terms), "student")
            self.teacher = Capture(teacher, (term.layer_teacher for term in self.terms), "teacher")

    def trained_modules(self) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """The projections that hold parameters, each with the options of its optimizer group."""
        return ((term.projection, term.options) for term in self.terms if isinstance(term.projection, nn.Module))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on the modules for the length of a run."""
        with ExitStack() as stack:
            self._enter(stack, "hooked")
            yield

    def read_into(self, stack: ExitStack) -> None:
        """Read, until ``stack`` closes, what the modules put out."""
        self._enter(stack, "reading")

    def _enter(self, stack: ExitStack, name: str) -> None:
        for capture in (self.student, self.teacher):
            if capture is not None:
                context: AbstractContextManager[Any] = capture.hooked() if name == "hooked" else capture.reading()
                stack.enter_context(context)

    def values(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, float]]:
        """The name, the unweighted value and the weight of each."""
        if self.student is None or self.teacher is None:
            return
        ours = self.student.join(Outputs(inputs_mask=student.get("inputs_mask")))
        theirs = self.teacher.join(Outputs(inputs_mask=teacher.get("inputs_mask")))
        batch = Batch(ours, (theirs,), 0.0, 0, 0)
        for term in self.terms:
            value = term.value(batch, term.weight)
            yield f"unweighted_{term.name}", value.value, value.weight
