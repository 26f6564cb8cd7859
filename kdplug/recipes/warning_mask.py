"""Masks that an adaptor returns and nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning

_MASKS = {"mask", "student_mask", "teacher_mask"}


def unused_masks(sample: Sample) -> Iterator[PlanWarning]:
    """An ``inputs_mask`` that no match's loss takes, a ``logits_mask`` without kd loss, logits of which padding counts.

    That a mask does nothing to logits of two axes is said by the objective itself.
    """
    given = set(sample.of_student.given) | set(sample.of_teacher.given)
    terms = [term for term, _, _ in sample.objective.matches.terms()]
    if "inputs_mask" in given and terms and not any(_MASKS & set(term.inputs) for term in terms):
        message = f"inputs_mask is read by no term: none of {', '.join(sorted({t.owner for t in terms}))} takes a mask"
        yield PlanWarning("unused_mask", "distillation.intermediate_matches", message)
    kd = sample.objective.kd_loss
    if "logits_mask" in given and kd is None:
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
