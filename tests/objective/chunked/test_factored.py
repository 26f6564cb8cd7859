"""Logits as factors: what any loss gives on them is what it gives on the logits, in pieces of any size."""

from __future__ import annotations

import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from torch import nn

from kdplug import (
    ConfigError,
    DistillationConfig,
    FactoredLogits,
    LossSum,
    Objective,
    OutputsError,
    RunError,
)

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
HEADS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 3.0}]
SIDES = [("student", "teacher"), ("student",), ("teacher",)]


def odd_loss(student_logits, teacher_logits, temperature) -> LossSum:
    """A third party's loss that knows nothing of pieces: a sum over items of something of no closed form."""
    gap = (student_logits / temperature).softmax(-1).sqrt() - (teacher_logits / temperature).softmax(-1).sqrt()
    total = (gap.square().sum(-1) + 0.1 * student_logits.logsumexp(-1)).sum()
    return LossSum(total, student_logits.shape[:-1].numel())


def labelled(student_logits, teacher_logits, labels) -> LossSum:
    counts = labels >= 0
    values = student_logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return LossSum(torch.where(counts, values * teacher_logits.amax(-1), 0).sum(), counts.sum())


class Learned(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits) -> LossSum:
        gap = (student_logits - teacher_logits).abs() ** self.power
        return LossSum(gap.sum(), gap[..., 0].numel())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("factored", SIDES)
@pytest.mark.parametrize("chunk", [1, 5, 12, "auto"])
def test_a_loss_that_knows_nothing_of_pieces_gives_the_same_on_factored_logits(offer, head, factored, chunk):
    scene, loss = Scene(head=head), offer(odd_loss)
    expected = scene.run(factored=(), kd_loss_type=loss)
    assert_same(scene.run(factored=factored, kd_loss_type=loss, logit_chunk=chunk), expected)


def test_a_head_without_a_bias_learns_too(offer):
    scene, loss = Scene(biased=False), offer(odd_loss)
    assert_same(scene.run(kd_loss_type=loss, logit_chunk=5), scene.run(factored=(), kd_loss_type=loss))


@pytest.mark.parametrize("chunk", [2, "whole"])
def test_masked_items_never_reach_the_head(offer, chunk):
    scene, loss = Scene(), offer(odd_loss)
    expected = scene.run(factored=(), kd_loss_type=loss, outputs={"logits_mask": MASK})
    found = scene.run(kd_loss_type=loss, outputs={"logits_mask": MASK}, logit_chunk=chunk)
    assert_same(found, expected)
    assert not found[1][0][MASK == 0].any()


def test_padding_that_holds_nan_changes_nothing(offer):
    scene, loss = Scene(), offer(odd_loss)
    expected = scene.run(kd_loss_type=loss, outputs={"logits_mask": MASK}, logit_chunk=2)
    scene.student[0].data[MASK == 0] = float("nan")
    assert_same(scene.run(kd_loss_type=loss, outputs={"logits_mask": MASK}, logit_chunk=2), expected)


def test_a_batch_that_is_all_padding_gives_0_and_finite_gradients(offer):
    total, gradients, _ = Scene().run(kd_loss_type=offer(odd_loss), outputs={"logits_mask": MASK * 0})
    assert total == 0
    assert not any(gradient.any() for gradient in gradients)


def test_counts_that_are_tensors_add_up(offer):
    scene, loss = Scene(), offer(labelled)
    labels = torch.tensor([[1, -100, 3, 4], [-100, -100, 0, 9], [2, 2, -100, 10]])
    expected = scene.run(factored=(), kd_loss_type=loss, outputs={"labels": labels})
    found = scene.run(kd_loss_type=loss, outputs={"labels": labels}, logit_chunk=5)
    assert_same(found, expected)
    assert found[2].terms["kd_loss"].count == expected[2].terms["kd_loss"].count == 8


@pytest.mark.parametrize("chunk", [5, "whole"])
def test_the_shifted_teacher_is_shifted_piece_by_piece(offer, chunk):
    scene, loss, labels = Scene(), offer(odd_loss), torch.arange(12).view(3, 4) % CLASSES
    keys = {"kd_loss_type": loss, "outputs": {"labels": labels}, "probability_shift": True}
    assert_same(scene.run(logit_chunk=chunk, **keys), scene.run(factored=(), **keys))


def test_a_loss_that_learns_gets_its_own_gradient(offer):
    scene, found = Scene(), []
    for factored in ((), ("student", "teacher")):
        objective = Objective(DistillationConfig(kd_loss_type=offer(Learned), logit_chunk=5))
        sides = [scene.logits(side, factored=side in factored) for side in ("student", "teacher")]
        objective(*sides).total.backward()
        found.append(objective.configured["0"].loss.power.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


def test_several_heads_are_each_taken_in_pieces(offer):
    one, two, loss = Scene(), Scene(classes=6), offer(odd_loss)
    keys = {"kd_loss_type": loss, "logit_chunk": 5}

    def gradients(*, factored):
        heads = [[scene.logits(side, factored=factored) for scene in (one, two)] for side in ("student", "teacher")]
        total = Objective(DistillationConfig(**keys))({"logits": heads[0]}, {"logits": heads[1]}).total
        return total, torch.autograd.grad(total, [*one.student, *two.student])

    assert_same(gradients(factored=True), gradients(factored=False))


def test_a_tied_weight_gets_the_gradient_of_both_its_uses(offer):
    scene, loss, ids = Scene(biased=False), offer(odd_loss), torch.arange(12).view(3, 4) % CLASSES

    def gradient(*, factored):
        weight = scene.student[1]
        logits = FactoredLogits(weight[ids] + 1, weight)
        teacher = scene.logits("teacher", factored=factored)
        objective = Objective(DistillationConfig(kd_loss_type=loss, logit_chunk=5))
        (found,) = torch.autograd.grad(objective(logits if factored else logits.dense(), teacher).total, [weight])
        return found

    torch.testing.assert_close(gradient(factored=True), gradient(factored=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_factor_gets_no_gradient_and_the_others_theirs(offer, frozen):
    scene, loss = Scene(), offer(odd_loss)
    scene.student[frozen].requires_grad_(False)
    found = scene.run(kd_loss_type=loss, logit_chunk=5)
    assert_same([found[0], [g for g in found[1] if g is not None]], _without(scene.run(factored=(), kd_loss_type=loss)))
    assert found[1][frozen] is None


def _without(run):
    return run[0], [gradient for gradient in run[1] if gradient is not None]


def test_without_gradient_the_value_is_the_same(offer):
    scene, loss = Scene(), offer(odd_loss)
    with torch.no_grad():
        objective = Objective(DistillationConfig(kd_loss_type=loss, logit_chunk=5))
        total = objective(*(scene.logits(side, factored=True) for side in ("student", "teacher"))).total
    assert not total.requires_grad
    torch.testing.assert_close(total, scene.run(factored=(), kd_loss_type=loss)[0], rtol=1e-10, atol=0)


def test_the_backward_pass_scales_by_what_comes_after(offer):
    scene, loss = Scene(), offer(odd_loss)
    once = scene.run(kd_loss_type=loss, logit_chunk=5)
    thrice = scene.run(kd_loss_type=loss, logit_chunk=5, kd_loss_weight=3.0)
    for one, other in zip(once[1], thrice[1], strict=True):
        torch.testing.assert_close(3 * one, other, rtol=1e-12, atol=0)


def test_gradients_add_up_over_two_batches(offer):
    scene = Scene()
    objective = Objective(DistillationConfig(kd_loss_type=offer(odd_loss), logit_chunk=5))
    for _ in range(2):
        objective(*(scene.logits(side, factored=True) for side in ("student", "teacher"))).total.backward()
    twice = [tensor.grad for tensor in scene.student]
    once = scene.run(kd_loss_type="offered", logit_chunk=5)[1]
    assert all(torch.allclose(one * 2, two, rtol=1e-12) for one, two in zip(once, twice, strict=True))


def test_a_second_backward_pass_is_refused(offer):
    scene = Scene()
    objective = Objective(DistillationConfig(kd_loss_type=offer(odd_loss), logit_chunk=5))
    total = objective(*(scene.logits(side, factored=True) for side in ("student", "teacher"))).total
    total.backward(retain_graph=True)
    with pytest.raises(RunError, match=r"^a second backward pass through a loss on FactoredLogits"):
        total.backward()


# What compares items


@pytest.mark.parametrize("chunk", [12, "auto", "whole"])
def test_a_scalar_is_fine_where_all_items_are_one_piece(chunk):
    scene = Scene()
    assert_same(scene.run(kd_loss_type="ce", logit_chunk=chunk), scene.run(factored=(), kd_loss_type="ce"))


def spread(student_logits, teacher_logits, temperature):
    return temperature + (teacher_logits.amax(-1) - teacher_logits.amax(-1).mean()).abs()


def test_a_temperature_scheduler_is_refused_where_there_is_more_than_one_piece(offer):
    offer(spread, "temperature_schedulers", "spread")
    keys = {"kd_loss_type": "ce_sum", "temperature_scheduler": "spread"}
    scene = Scene()
    assert_same(scene.run(**keys), scene.run(factored=(), **keys))
    with pytest.raises(ConfigError, match=r"^temperature_scheduler: local:spread reads the logits of all 12 items"):
        scene.run(logit_chunk=5, **keys)


def mean(teacher_logits_list):
    return sum(teacher_logits_list) / len(teacher_logits_list)


def test_several_teachers_are_multiplied_out_or_refused(offer):
    offer(mean, "teacher_combiners", "mean")
    scene, keys = Scene(), {"kd_loss_type": "ce_sum", "teacher_combiner": "mean"}
    sides = {factored: scene.logits("teacher", factored=factored) for factored in (True, False)}
    logits = scene.logits("student", factored=True)
    whole = Objective(DistillationConfig(**keys), teachers=2)(
        logits, [{"logits": sides[True]}, {"logits": sides[False]}]
    )
    torch.testing.assert_close(whole.total, scene.run(factored=(), kd_loss_type="ce_sum")[0], rtol=1e-10, atol=0)
    with pytest.raises(OutputsError, match=r"^teacher_combiner: local:mean reads the logits of all 12 items"):
        Objective(DistillationConfig(logit_chunk=5, **keys), teachers=2)(logits, [{"logits": sides[True]}] * 2)


# Vocabularies


@pytest.mark.parametrize("factored", [(), *SIDES])
@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_the_padding_of_a_vocabulary_is_left_out_and_warned_of_once(offer, factored, longer):
    short, long, loss = Scene(), Scene(classes=CLASSES + 3), offer(odd_loss)
    student, teacher = (long, short) if longer == "student" else (short, long)
    other = teacher.logits("teacher", factored="teacher" in factored)
    cut = teacher.logits("teacher", factored=False)[..., :CLASSES]
    objective = Objective(DistillationConfig(kd_loss_type=loss, padded_vocabulary="drop", logit_chunk=5))
    with pytest.warns(UserWarning, match=rf"the {longer}'s last 3 classes are dropped") as caught:
        totals = [objective(student.logits("student", factored="student" in factored), other).total for _ in range(2)]
    own = student.logits("student", factored=False)[..., :CLASSES]
    expected = Objective(DistillationConfig(kd_loss_type=loss))(own, cut).total
    gradients = [torch.autograd.grad(total, student.student) for total in (totals[1], expected)]
    assert_same((totals[0], gradients[0]), (expected, gradients[1]))
    assert len(caught) == 1


def test_vocabularies_that_differ_are_refused_unless_padding_may_be_dropped(offer):
    with pytest.raises(ValueError, match=r"^logits: the student's \[3, 4, 11\].*set padded_vocabulary: drop"):
        Scene().run(kd_loss_type=offer(odd_loss), teacher=Scene(classes=14).logits("teacher", factored=True))


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_in_any_precision_give_gradients_in_theirs(offer, dtype):
    scene, loss = Scene(dtype=dtype), offer(odd_loss)
    found, expected = scene.run(kd_loss_type=loss, logit_chunk=5), scene.run(factored=(), kd_loss_type=loss)
    assert {gradient.dtype for gradient in found[1]} == {dtype}
    loose = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    assert_same(found, expected, **loose)


def test_under_autocast_the_head_runs_in_half_precision_and_the_loss_does_not(offer):
    seen, scene = [], Scene(dtype=torch.float32)

    def watching(student_logits, teacher_logits) -> LossSum:
        seen.append(student_logits.dtype)
        return odd_loss(student_logits, teacher_logits, 1.0)

    with torch.autocast("cpu", torch.bfloat16):
        found = scene.run(kd_loss_type=offer(watching), logit_chunk=5)
        expected = scene.run(factored=(), kd_loss_type="offered")
    assert set(seen) == {torch.float32}
    assert_same(found, expected, rtol=2e-2, atol=2e-2)
    assert found[0] != scene.run(kd_loss_type="offered", logit_chunk=5)[0]


def test_the_gradient_of_a_weight_adds_up_in_float32(offer):
    """A thousand pieces of one item, each far below what bfloat16 could add to the sum."""
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)

    def first(student_logits, teacher_logits) -> LossSum:
        return LossSum(student_logits[..., 0].sum(), 1e-3)

    objective = Objective(DistillationConfig(kd_loss_type=offer(first), logit_chunk=1))
    objective(FactoredLogits(hidden, weight), torch.zeros(1000, 2)).total.backward()
    assert weight.grad[0].item() == 1000


def test_no_piece_is_longer_than_its_setting(offer):
    seen = []

    def watching(student_logits, teacher_logits) -> LossSum:
        seen.append(len(student_logits))
        return odd_loss(student_logits, teacher_logits, 1.0)

    Scene().run(kd_loss_type=offer(watching), logit_chunk=5)
    assert seen == [4, 4, 4]


def test_a_term_of_weight_0_keeps_the_factors_in_the_graph(offer):
    offer(lambda progress: 0.0, "weight_schedulers", "off")
    total, gradients, _ = Scene().run(kd_loss_type=offer(odd_loss), kd_loss_weight_scheduler="off")
    assert total == 0
    assert not any(gradient.any() for gradient in gradients)


def test_hidden_may_be_of_any_rank(offer):
    scene = Scene(items=(2,))
    assert_same(scene.run(kd_loss_type=offer(odd_loss), logit_chunk=1), scene.run(factored=(), kd_loss_type="offered"))
