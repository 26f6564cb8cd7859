"""Labels that are the inputs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning

_SHARE = 0.95
_LABEL_NAMES = ("label", "target")


def unshifted_labels(sample: Sample) -> Iterator[PlanWarning]:
    """Labels of a causal language model at the position of their own token, where a loss takes them.

    The logits at a position are about the next token. A model's own loss shifts; a loss that is given labels does not.
    """
    takers = list(_takers(sample))
    if not takers or not (name := _same_inputs(sample)):
        return
    message = (
        f"the labels are the inputs {name!r} position by position, but logits are about the next token: {' and '.join(takers)} "
        "would read each label one position early. Return labels from the adaptor that are shifted by one, with -100 at the end"
    )
    yield PlanWarning("unshifted_labels", "distillation", message)


def _takers(sample: Sample) -> Iterator[str]:
    kd = sample.objective.kd_loss
    if kd is not None and kd.shifts:
        yield "probability_shift"
    if kd is not None and "labels" in kd.inputs:
        yield kd.owner
    yield from (term.owner for term, _, _ in sample.objective.matches.terms() if term.wants_labels)


def _same_inputs(sample: Sample) -> str:
    """The name of an input that the labels repeat, empty where there is none."""
    for labels in sample.of_student.labels or ():
        if labels.dim() != 2 or labels.shape[1] < 2:
            continue
        counts = labels >= 0
        for name, tensor in _integers(sample.batch):
            if tensor.shape != labels.shape or not counts.any():
                continue
            chosen = labels[counts]
            is_same = (chosen == tensor.to(labels.device)[counts]).float().mean() >= _SHARE
            if is_same and len(torch.unique(chosen)) > 2:  # a mask of ones and zeros is no text
                return name
    return ""


def _integers(batch: Any, name: str = "input") -> Iterator[tuple[str, Tensor]]:
    """The tensors of integers in a batch by name, but for those that are called labels."""
    if isinstance(batch, Tensor):
        if not batch.is_floating_point() and not batch.is_complex():
            yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            if not any(word in str(key).casefold() for word in _LABEL_NAMES):
                yield from _integers(value, str(key))
    elif isinstance(batch, (list, tuple)) and batch:
        yield from _integers(batch[0], "0")  # what follows it may be the labels
