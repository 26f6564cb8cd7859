"""The student and the objective behind one forward pass, without a module around the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdplug.objective.capture import Capture
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport

NAME = "distillation_objective"
"""What the objective is called among the student's modules while they are linked."""


@dataclass(slots=True, eq=False)
class Question:
    """What the objective needs besides the student's outputs, and ``report``, its answer. ``read`` is what an adaptor does."""

    read: Callable[[Any], Any]
    teacher: Any
    progress: float
    step: int
    total_steps: int
    micro_batch: int
    report: LossReport | None = None


class Link:
    """Makes the objective a part of the student for a while.

    What wraps the student then wraps the objective too: DDP, FSDP and DeepSpeed synchronise and shard it, and clipping
    counts it. It is computed by a forward hook of the student, and so inside the wrapper's forward pass, where sharded
    parameters are whole. The student stays the object that it was, so that whoever asks for its config, signature or
    ``save_pretrained`` finds them.
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        self.student = student
        self.objective = objective
        self._capture: Capture | None = None
        self._question: Question | None = None

    @contextmanager
    def joined(self, *, is_sharded: bool = False) -> Iterator[None]:
        """Inside the block, the objective is a part of the student, and a question put to the student is answered.

        The student's state dict leaves the objective out, unless ``is_sharded``: then what FSDP or DeepSpeed save is both, and
        both stay together afterwards, as the wrapper does.
        """
        self.objective.connect(student=self.student)
        self._capture = Capture(self.student, self.objective.paths("student"), "student")
        self.student.add_module(NAME, self.objective)
        # Before the hooks of FSDP, which put the shards back.
        handles = [self.student.register_forward_hook(self._answer, prepend=True)]
        if not is_sharded:
            handles.append(self.student.register_state_dict_post_hook(_leave_out))  # type: ignore[no-untyped-call]
        try:
            with self._capture.hooked():
                yield
        finally:
            self._capture = None
            for handle in handles:
                handle.remove()
            if not is_sharded:
                self._part()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside the block, the student is without the objective."""
        was_joined = NAME in dict(self.student.named_children())
        if was_joined:
            self._part()
        try:
            yield
        finally:
            if was_joined:
                self.student.add_module(NAME, self.objective)

    def ask(self, model: nn.Module, inputs: dict[str, Any], question: Question) -> tuple[Any, LossReport]:
        """The student's outputs for ``inputs``, and the loss. ``model`` is the student as it was wrapped."""
        assert self._capture is not None
        self._question = question
        try:
            with self._capture.reading():
                outputs = model(**inputs)[0]
        finally:
            self._question = None
        assert question.report is not None
        return outputs, question.report

    def read(self, inputs: dict[str, Any], adaptor: Callable[[Any], Any]) -> Any:
        """What the objective reads of the student alone."""
        assert self._capture is not None
        with self._capture.reading():
            outputs = self.student(**inputs)
        return self._capture.join(adaptor(outputs))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # progress differs at each step, and would compile anew
    def _answer(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:  # noqa: ARG002
        """Outputs with the loss and what it is made of beside them, since DDP and FSDP look for tensors there."""
        question, capture = self._question, self._capture
        if question is None or capture is None:
            return None
        question.report = self.objective(
            student=capture.join(question.read(outputs)),
            teacher=question.teacher,
            progress=question.progress,
            step=question.step,
            total_steps=question.total_steps,
            micro_batch=question.micro_batch,
        )
        terms = question.report.terms.values()
        return outputs, question.report.total, *(part.total for term in terms for part in term.parts)

    def _part(self) -> None:
        delattr(self.student, NAME)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: ARG001
    for key in [key for key in state if key.startswith(f"{prefix}{NAME}.")]:
        del state[key]
