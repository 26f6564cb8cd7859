"""Masks that an adaptor returns and nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss_sum import LossSum
from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Loss

_MASKS = {"mask", "student_mask", "teacher_mask"}


def unused_masks(sample: Sample) -> Iterator[PlanWarning]:
    """An ``inputs_mask`` that no match's loss takes, a ``logits_mask`` without kd loss, logits of which padding counts.

    Without kd loss a ``logits_mask`` has nothing to do where matches have their ``inputs_mask`` and the student's own losses leave
    out by themselves what it leaves out. That a mask does nothing to logits of two axes is said by the objective itself.
    """
    given = set(sample.of_student.given) | set(sample.of_teacher.given)
    terms = [term for term, _, _ in sample.objective.matches.terms()]
    takers = [term for term in terms if _MASKS & set(term.inputs)]
    if "inputs_mask" in given and terms and not takers:
        message = f"inputs_mask is read by no term: none of {', '.join(sorted({t.owner for t in terms}))} takes a mask"
        yield PlanWarning("unused_mask", "distillation.intermediate_matches", message)
    kd = sample.objective.kd_loss
    is_missed = (bool(takers) and "inputs_mask" not in given) or _losses_need_mask(sample)
    if "logits_mask" in given and kd is None and is_missed:
        message = "logits_mask is read by no term: the kd loss is off"
        yield PlanWarning("unused_mask", "distillation.kd_loss_weight", message)
    if kd is not None and "logits_mask" not in given and _counts_padding(sample):
        message = "inputs_mask leaves positions out, but the kd loss counts them too: it reads logits_mask, which no adaptor returned"
        yield PlanWarning("padding_counts", "", message)


def _counts_padding(sample: Sample) -> bool:
    """Whether logits go position by position over inputs of which some are masked."""
    mask, logits = sample.of_student.inputs_mask, sample.of_student.logits
    if mask is None or logits is None or bool((mask != 0).all()):
        return False
    return any(len(one.shape) == 3 and one.shape[:2] == mask.shape for one in logits)


def _losses_need_mask(sample: Sample) -> bool:
    """Whether the student's own losses are a term, and are not known to leave out the logits that ``logits_mask`` leaves out."""
    outputs = sample.of_student
    if sample.objective.hard_label_loss is None or not outputs.losses:
        return False
    heads = [one.hidden if isinstance(one, FactoredLogits) else one for one in outputs.logits or ()]
    logits = [one for one in heads if isinstance(one, Tensor)]
    masks = outputs.logits_mask or ()
    fitting = all(mask.shape == one.shape[:-1] for mask, one in zip(masks, logits, strict=False))
    if len(masks) != len(logits) or not fitting:
        return True
    slopes = _slopes(outputs.losses, logits)
    return any(slope is None or slope[mask == 0].any() for slope, mask in zip(slopes, masks, strict=True))


def _slopes(losses: tuple[Loss, ...], logits: list[Tensor]) -> list[Tensor | None]:
    """The gradient of the losses in each head's logits, ``None`` where they are not made of these. The graph stays."""
    totals = [loss.total if isinstance(loss, LossSum) else loss.sum() for loss in losses]
    total = torch.stack(totals).sum()
    if not total.requires_grad or not all(one.requires_grad for one in logits):
        return [None] * len(logits)
    return list(torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True))
