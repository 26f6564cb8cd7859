"""Run student and objective in one forward pass, without wrapping the student in another module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kdplug.engine.parallel.fsdp import check_unsharded
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport

_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


class OwnLoss:
    """The Trainer's ``compute_loss_func`` or label smoother; without either, the model computes its own loss."""

    def __init__(self, function: Callable[..., Any] | None, smoother: Callable[..., Any] | None) -> None:
        self._function = function
        self._smoother = smoother

    def of(self, student: nn.Module, batch: Mapping[str, Any], items: int | None) -> Callable[[Any], Tensor] | None:
        """Return a function from the student's outputs to their mean loss; ``None`` if the model computes it."""
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
        """Return the student's arguments if its loss is computed outside the model: all but the labels."""
        return {key: value for key, value in inputs.items() if key != "labels"}

    @staticmethod
    def shifts(student: nn.Module) -> bool:
        """Return whether the student's loss compares the logits at each token with the next label."""
        core = getattr(student, "get_base_model", lambda: student)()
        return type(core).__name__ in _CAUSAL and not getattr(core.config, "is_encoder_decoder", False)


NAME = "distillation_objective"
"""The objective's name among the student's modules while they are linked."""


@dataclass(slots=True, eq=False)
class ForwardRequest:
    """The objective's inputs other than the student's outputs; ``report`` is set to its result.

    ``read`` turns the student's outputs into what the objective reads, as an adaptor does.
    """

    read: Callable[[Any], Any]
    teacher: Any
    progress: float
    step: int
    total_steps: int
    epoch: int
    example_ids: Any
    micro_batch: int
    report: LossReport | None = None


class Link:
    """Temporarily makes the objective a submodule of the student.

    A wrapper of the student then includes the objective: DDP, FSDP and DeepSpeed synchronize and shard it, and gradient
    clipping covers it. A forward hook of the student computes it, inside the wrapper's forward pass, where sharded
    parameters are gathered. The student itself is not wrapped, so its config, signature and ``save_pretrained`` stay
    available.
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        self.student = student
        self.objective = objective
        self._capture: Capture | None = None
        self._request: ForwardRequest | None = None

    @contextmanager
    def joined(self, *, is_sharded: bool = False) -> Iterator[None]:
        """Add the objective to the student for the block, and install the hook that computes it.

        The student's state dict omits the objective, unless ``is_sharded``: then FSDP or DeepSpeed save both
        together, and the objective stays a submodule after the block, because the wrapper stays too.
        """
        if is_sharded:
            check_unsharded(self.objective)
        self.objective.connect(student=self.student)
        self._capture = Capture(self.student, self.objective.paths("student"), "student")
        self.student.add_module(NAME, self.objective)
        # Runs before FSDP's hooks, which reshard the parameters.
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
        """Remove the objective from the student for the block."""
        was_joined = NAME in dict(self.student.named_children())
        if was_joined:
            self._part()
        try:
            yield
        finally:
            if was_joined:
                self.student.add_module(NAME, self.objective)

    def ask(self, model: nn.Module, inputs: dict[str, Any], request: ForwardRequest) -> tuple[Any, LossReport]:
        """Return the student's outputs for ``inputs``, and the loss report. ``model`` is the wrapped student."""
        assert self._capture is not None
        self._request = request
        try:
            with self._capture.reading():
                outputs = model(**inputs)[0]
        finally:
            self._request = None
        assert request.report is not None
        return outputs, request.report

    def read(self, inputs: dict[str, Any], adaptor: Callable[[Any], Any]) -> Any:
        """Run the student without the objective, and return what the objective would read."""
        assert self._capture is not None
        with self._capture.reading():
            outputs = self.student(**inputs)
        return self._capture.join(adaptor(outputs))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # progress changes at each step, which would recompile
    def _answer(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:  # noqa: ARG002
        """Return the outputs with the loss and its parts, because DDP and FSDP look for tensors in the outputs."""
        request, capture = self._request, self._capture
        if request is None or capture is None:
            return None
        request.report = self.objective(
            student=capture.join(request.read(outputs)),
            teacher=request.teacher,
            progress=request.progress,
            step=request.step,
            total_steps=request.total_steps,
            epoch=request.epoch,
            example_ids=request.example_ids,
            micro_batch=request.micro_batch,
        )
        terms = request.report.terms.values()
        return outputs, request.report.total, *(part.total for term in terms for part in term.parts)

    def _part(self) -> None:
        delattr(self.student, NAME)


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: ARG001
    for key in [key for key in state if key.startswith(f"{prefix}{NAME}.")]:
        del state[key]
