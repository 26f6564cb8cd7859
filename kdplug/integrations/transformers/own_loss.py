"""The student's own loss where the Trainer, and not the model, computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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
