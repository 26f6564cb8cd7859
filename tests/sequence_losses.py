"""Losses that compare positions of a sequence with each other."""

from __future__ import annotations

import kdplug
from kdplug import LossSum


@kdplug.whole_sequences
def slopes(student_logits, teacher_logits, mask) -> LossSum:
    """Squared difference of the steps between neighbouring positions, mean over pairs of positions."""
    pairs = mask[:, 1:] & mask[:, :-1]
    steps = (student_logits - teacher_logits).diff(dim=1).square().mean(-1)
    return LossSum(steps.masked_fill(~pairs, 0.0).sum(), pairs.sum())


@kdplug.whole_sequences
def policy(student_logits, teacher_logits, labels, mask) -> LossSum:
    """Policy gradient whose reward is the mean log-ratio of a whole sequence, mean over sequences."""
    own, theirs = (
        side.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
        for side in (student_logits, teacher_logits)
    )
    reward = (theirs - own).detach().sum(-1) / mask.sum(-1).clamp_min(1)
    return LossSum(-(reward * own.sum(-1)).sum(), mask.any(-1).sum())
