"""Losses of other shapes than the default, and losses with labels."""

from __future__ import annotations

import torch
from testing.specimen import at_least_float32, check, correlation, laws_of
from torch import Tensor
from torch.nn import functional

from kdplug import LossSum
from kdplug.testing import LossLaws, broken_laws, law_names


def attention_transfer(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """Squared distance of the normalized maps of mean squared activation, mean over counted examples."""
    if (
        student_features.shape[0] != teacher_features.shape[0]
        or student_features.shape[2:] != teacher_features.shape[2:]
    ):
        raise ValueError("batch and map differ")
    sides = [
        at_least_float32(side).square().mean(1).flatten(1) for side in (student_features, teacher_features.detach())
    ]
    counts = torch.ones(student_features.shape[0], dtype=torch.bool) if mask is None else mask
    if counts.shape != student_features.shape[:1]:
        raise ValueError("one mask entry per example")
    student, teacher = (functional.normalize(torch.where(counts[:, None], side, 1.0), dim=-1) for side in sides)
    return LossSum((student - teacher).square().sum(-1).masked_fill(~counts, 0.0).sum(), counts.sum())


def padding_safe(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """The same, of features whose padding was taken out first."""
    if mask is not None and mask.shape == student_features.shape[:1]:
        hidden = ~mask[:, None, None, None]
        student_features, teacher_features = (
            side.masked_fill(hidden, 1.0) for side in (student_features, teacher_features)
        )
    return attention_transfer(student_features, teacher_features, mask)


class MapLaws(LossLaws):
    shape = (3, 4, 3, 3)
    may_differ = (1,)
    non_negative = zero_at_equality = True


def labelled(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Tensor | float) -> LossSum:
    """Cross-entropy with the label, weighted by the teacher's confidence in it."""
    check(student_logits, teacher_logits)
    has_label = labels != -100
    degree = temperature[..., None] if isinstance(temperature, Tensor) else temperature
    index = labels.clamp_min(0)[..., None]
    student = (at_least_float32(student_logits) / degree).log_softmax(-1).gather(-1, index)[..., 0]
    weight = (at_least_float32(teacher_logits.detach()) / degree).softmax(-1).gather(-1, index)[..., 0]
    return LossSum((-student * weight).masked_fill(~has_label, 0.0).sum(), has_label.sum())


def test_feature_maps_with_a_mask_over_the_batch_are_put_under_the_laws() -> None:
    laws = laws_of(MapLaws, padding_safe)
    assert broken_laws(laws) == {}
    assert "test_longer_padding_changes_nothing" not in law_names(laws)


def test_a_mask_over_the_batch_that_comes_too_late_is_caught() -> None:
    found = broken_laws(laws_of(MapLaws, attention_transfer))
    assert "non-finite gradient" in found["test_padding_that_is_not_finite_does_not_spread"]


def test_a_loss_with_labels_is_put_under_the_laws() -> None:
    best = "test_no_student_is_better_than_the_teacher_itself"
    laws = laws_of(LossLaws, labelled, non_negative=True, t2=False, except_for={best: "it is drawn to the label"})
    assert broken_laws(laws) == {}


def test_minus_one_hundred_taken_as_an_index_is_caught() -> None:
    def careless(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with the label."""
        chosen = at_least_float32(student_logits).log_softmax(-1).gather(-1, labels[..., None])
        return correlation(student_logits, teacher_logits) - chosen.mean()

    assert "index -100" in broken_laws(laws_of(LossLaws, careless))["test_items_without_a_label_stay_finite"]


def test_logits_without_a_length_have_no_laws_on_tokens() -> None:
    laws = laws_of(LossLaws, correlation, shape=(6, 5))
    assert broken_laws(laws) == {}
    assert "test_the_order_of_tokens_does_not_matter" not in law_names(laws)
