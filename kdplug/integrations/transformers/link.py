"""The student and the objective behind one forward pass, without a module around the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kdplug.objective.capture.hooks import Capture
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport

_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


class OwnLoss:
    """``compute_loss_func``, or label smoothing, as the Trainer was given them; nothing where the model has its own loss."""

    def __init__(self, function: Callable[..., Any] | None, smoother: Callable[..., Any] | None) -> None:
        self._function = function
        self._smoother = smoother

    def of(self, student: nn.Module, batch: Mapping[str, Any], items: int | None) -> Callable[[Any], Tensor] | None:
        """What gives the mean loss of the student's outputs; ``None`` where the model gives it."""
        labels = batch.get("labels")
        function, smoother = self._function, self._smoother
        if function is not None:
            return lambda outputs: function(outputs, labels, num_items_in_batch=items)
        if smoother is None or labels is None:
            return None
        shifted = {"shift_labels": True} if self.shifts(student) else {}
        return lambda outputs: smoother(outputs, labels, **shifted)

    @staticmethod
    def unlabelled(inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the student is called with where its own loss is computed outside of it."""
        return {key: value for key, value in inputs.items() if key != "labels"}

    @staticmethod
    def shifts(student: nn.Module) -> bool:
        """Whether the student's loss compares each token with the next label."""
        core = getattr(student, "get_base_model", lambda: student)()
        return type(core).__name__ in _CAUSAL and not getattr(core.config, "is_encoder_decoder", False)


NAME = "distillation_objective"
"""What the objective is called among the student's modules while they are linked."""


@dataclass(slots=True, eq=False)
class ForwardRequest:
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
        self._question: ForwardRequest | None = None

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

    def ask(self, model: nn.Module, inputs: dict[str, Any], question: ForwardRequest) -> tuple[Any, LossReport]:
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
