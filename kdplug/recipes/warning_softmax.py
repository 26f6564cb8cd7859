"""A softmax over what is a probability already."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdplug.recipes.plan_match import features
from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning

_TOLERANCE = 2e-2
"""What rows of bfloat16 may miss 1 by."""


def doubled_softmax(sample: Sample) -> Iterator[PlanWarning]:
    """Probabilities given to a loss that takes scores, scores given to one that takes probabilities, logits that are
    probabilities.

    A loss that has a setting ``inputs`` says with it which of the two it takes: ``scores`` or ``probs``.
    """
    matches = zip(sample.objective.matches.terms(), _settings(sample), strict=True)
    for (term, path, _), takes in matches:
        field = ".".join(map(str, ("distillation", *path, "loss")))
        for side in ("student", "teacher"):
            tensors = [tensor for of, tensor in features(term, sample) if of == side]
            if takes == "scores" and any(map(is_probability, tensors)):
                message = (
                    f"{term.name}: the {side}'s rows are probabilities (they sum to 1), and {term.owner} takes scores and applies "
                    "a softmax to them again. Write inputs: probs"
                )
                yield PlanWarning("doubled_softmax", field, message)
            elif takes == "probs" and not all(map(is_probability, tensors)):
                message = (
                    f"{term.name}: {term.owner} takes probabilities, and the {side}'s rows are none (they do not sum to 1). Write "
                    "inputs: scores"
                )
                yield PlanWarning("missing_softmax", field, message)
    if sample.objective.kd_loss is None:
        return
    for side, outputs in (("student", sample.of_student), ("teacher", sample.of_teacher)):
        if any(isinstance(logits, Tensor) and is_probability(logits) for logits in outputs.logits or ()):
            message = (
                f"the {side}'s logits are probabilities (they sum to 1); the kd loss applies a softmax to them again"
            )
            yield PlanWarning("doubled_softmax", "distillation.kd_loss_type", message)


def is_probability(tensor: Tensor) -> bool:
    """Whether each row along the last axis is at least 0 and sums to 1; a row of zeros, as padding leaves, is let pass."""
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-1] < 2 or not tensor.numel():
        return False
    rows = tensor.detach().float()
    sums = rows.sum(dim=-1)
    is_one, is_empty = (sums - 1).abs() < _TOLERANCE, sums == 0
    return bool((rows >= 0).all() and is_one.any() and torch.logical_or(is_one, is_empty).all())


def _settings(sample: Sample) -> list[object]:
    """What each match's loss takes, in the order of the objective's matches."""
    return [match.loss.settings.get("inputs") for match in sample.config.intermediate_matches if match.weight]
