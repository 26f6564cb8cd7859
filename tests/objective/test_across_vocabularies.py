"""Losses whose two sides may differ in the number of classes."""

from __future__ import annotations

import pytest
import torch

import kdplug
from kdplug import FactoredLogits, LossSum, SparseLogits
from kdplug.errors import OutputsError, ShapeError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


def peak(student_logits, teacher_logits) -> LossSum:
    """How far apart the largest probabilities are, summed over items."""
    own, theirs = (side.softmax(dim=-1).amax(dim=-1) for side in (student_logits, teacher_logits))
    return LossSum((own - theirs).abs().sum(), own.numel())


@kdplug.across_vocabularies
def free_peak(student_logits, teacher_logits) -> LossSum:
    """As ``peak``."""
    return peak(student_logits, teacher_logits)


@pytest.fixture
def total():
    """The kd loss of ``peak``, declared to be across vocabularies or not."""
    with isolated(scan()):
        kdplug.losses.register("peak")(peak)
        kdplug.losses.register("free_peak")(free_peak)

        def compute(student, teacher, loss="free_peak", **keys):
            return kdplug.Objective(kdplug.DistillationConfig(kd_loss_type=loss, **keys))(student, teacher).total

        yield compute


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    widths = ((5, 7), (3, 11))
    return [
        FactoredLogits(*(torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((2, 9, width), (classes, width))))
        for width, classes in widths
    ]  # fmt: skip


def test_the_loss_sees_all_classes_of_both_sides(total, sides):
    student, teacher = (side.dense() for side in sides)
    torch.testing.assert_close(total(student, teacher), peak(student, teacher).value)


def test_an_undeclared_loss_is_not_given_two_vocabularies(total, sides):
    with pytest.raises(ShapeError, match="a loss that declares across_vocabularies"):
        total(*(side.dense() for side in sides), loss="peak")


def test_factors_give_the_same_loss_and_gradients_in_pieces(total, sides):
    def gradients(make, **keys):
        factors = [one.clone().requires_grad_() for one in sides[0].tensors]
        value = total(make(FactoredLogits(*factors)), make(sides[1]), **keys)
        return value.detach(), torch.autograd.grad(value, factors)

    torch.testing.assert_close(gradients(lambda side: side, logit_chunk=4), gradients(FactoredLogits.dense))


def test_items_still_have_to_match(total, sides):
    student, teacher = (side.dense() for side in sides)
    with pytest.raises(ShapeError, match="must have the same shape"):
        total(student, teacher[:, :-1])


def test_each_side_has_a_mask_of_its_own_and_the_items_may_lie_elsewhere(total, sides):
    student, teacher = (side.dense() for side in sides)
    masks = [torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)]
    masks[0][:, [1, 4]], masks[1][:, [2, 11]] = True, True
    longer = torch.cat([teacher, teacher[:, :3]], dim=1)
    given = [{"logits": one, "logits_mask": mask} for one, mask in zip((student, longer), masks, strict=True)]
    torch.testing.assert_close(total(*given), peak(student[masks[0]], longer[masks[1]]).value)


def test_classes_that_are_said_to_be_padding_are_left_out(total, sides):
    student, teacher = (side.dense() for side in sides)
    with pytest.warns(UserWarning, match="the teacher's last 4 classes are dropped"):
        found = total(student, teacher, padded_vocabulary="drop")
    torch.testing.assert_close(found, peak(student, teacher[..., :7]).value)


def test_what_names_classes_is_refused(total, sides):
    student, teacher = (side.dense() for side in sides)
    with pytest.raises(OutputsError, match=r"teacher\.logits: are SparseLogits, whose ids are class indices"):
        total(student, SparseLogits.top(teacher, 2, 4.0))
    labelled = {"logits": student, "labels": torch.zeros(2, 9, dtype=torch.long)}
    with pytest.raises(OutputsError, match="probability_shift: needs the teacher's logit at the student's label"):
        total(labelled, teacher, probability_shift=True)
