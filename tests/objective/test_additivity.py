"""A loss that returns a scalar runs in pieces of the items where it is a mean or a sum over them, and nowhere else."""

from __future__ import annotations

import warnings

import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from torch import nn
from torch.nn import functional as F

from kdplug import DistillationConfig, Objective, SignatureError, SparseLogits, coarsens

SCALAR = pytest.mark.filterwarnings("ignore:kd_loss_type. local.offered returned a scalar")
SIDES = [("student", "teacher"), ("student",), ("teacher",)]


def softened(student_logits, teacher_logits, temperature):
    """Log-probabilities of both sides."""
    return [(side / temperature).log_softmax(-1) for side in (student_logits, teacher_logits)]


@coarsens
def mean_kl(student_logits, teacher_logits, temperature):
    """As most people write it."""
    own, theirs = softened(student_logits, teacher_logits, temperature)
    return (theirs.exp() * (theirs - own)).sum(-1).mean() * temperature**2


def in_single_precision(student_logits, teacher_logits, temperature):
    return mean_kl(student_logits.float(), teacher_logits.float(), temperature)


def of_all_elements(student_logits, teacher_logits):
    return F.mse_loss(student_logits, teacher_logits)


def summed(student_logits, teacher_logits, temperature):
    own, theirs = softened(student_logits, teacher_logits, temperature)
    return F.kl_div(own, theirs, reduction="sum", log_target=True)


def of_labels(student_logits, teacher_logits, labels):
    gathered = student_logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))
    return (gathered.squeeze(-1) * teacher_logits.amax(-1)).mean()


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits):
        return ((student_logits - teacher_logits).abs() ** self.power).mean()


def by_batchmean(student_logits, teacher_logits):
    return F.kl_div(student_logits.log_softmax(-1), teacher_logits.softmax(-1), reduction="batchmean")


def standardised(student_logits, teacher_logits):
    own, theirs = ((side - side.mean(0)) / side.std(0, correction=0) for side in (student_logits, teacher_logits))
    return (own - theirs).square().mean()


def over_deviation(student_logits, teacher_logits, temperature):
    return mean_kl(student_logits, teacher_logits, temperature) / teacher_logits.std()


def over_detached_maximum(student_logits, teacher_logits):
    gap = (student_logits - teacher_logits).square().mean(-1)
    return (gap / gap.detach().max()).mean()


def worst(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean(-1).max()


def root(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean().sqrt()


def of_sure_items(student_logits, teacher_logits, temperature):
    own, theirs = softened(student_logits, teacher_logits, temperature)
    sure = theirs.amax(-1) > -0.05
    return ((theirs.exp() * (theirs - own)).sum(-1) * sure).sum() / sure.sum().clamp(min=1)


def with_a_gradient_across_items(student_logits, teacher_logits):
    across = student_logits.std(0, correction=0).mean()
    return (student_logits - teacher_logits).square().mean() + across - across.detach()


def labelled_mean(student_logits, teacher_logits, labels):
    items = student_logits.shape[-1]
    return F.cross_entropy(student_logits.reshape(-1, items), labels.reshape(-1)) * teacher_logits.square().mean()


def cross_entropy(student_logits, teacher_logits, labels):
    return F.cross_entropy(student_logits.reshape(-1, student_logits.shape[-1]), labels.reshape(-1))


def dropped(student_logits, teacher_logits):
    return F.dropout((student_logits - teacher_logits).square(), 0.5).mean()


def at_the_end_across_items(student_logits, teacher_logits, progress):
    return (root if progress > 0.5 else of_all_elements)(student_logits, teacher_logits)


class Remembering(nn.Module):
    """Moves a mean along, in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.center = 0.0

    def forward(self, student_logits, teacher_logits):
        self.center = 0.9 * self.center + 0.1 * teacher_logits.mean()
        return (student_logits - teacher_logits + self.center).square().mean()


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, student_logits, teacher_logits):
        self.calls += 1
        return of_all_elements(student_logits, teacher_logits)


ADDING = [mean_kl, of_all_elements, summed, of_labels]
ACROSS = [
    by_batchmean,
    standardised,
    over_deviation,
    over_detached_maximum,
    worst,
    root,
    of_sure_items,
    with_a_gradient_across_items,
    labelled_mean,
    cross_entropy,
    dropped,
    Remembering,
    Buffered,
]


def outputs():
    return {"labels": torch.arange(12).view(3, 4) % CLASSES}


@SCALAR
@pytest.mark.parametrize("target", ADDING)
@pytest.mark.parametrize("factored", SIDES)
@pytest.mark.parametrize("chunk", [1, 5, 11])
def test_a_third_partys_scalar_gives_the_same_in_pieces_as_on_full_logits(offer, target, factored, chunk):
    scene, keys = Scene(), {"kd_loss_type": offer(target), "temperature": 2.0, "outputs": outputs()}
    assert_same(scene.run(factored=factored, logit_chunk=chunk, **keys), scene.run(factored=(), **keys))


@SCALAR
def test_a_loss_that_computes_in_single_precision_is_held_to_that(offer):
    scene, loss = Scene(dtype=torch.float32), offer(in_single_precision)
    expected = scene.run(factored=(), kd_loss_type=loss)
    assert_same(scene.run(kd_loss_type=loss, logit_chunk=5), expected, rtol=1e-5, atol=1e-6)


@SCALAR
def test_a_scalar_of_a_loss_that_learns_gives_the_loss_its_gradient(offer):
    scene, found = Scene(), []
    for factored in (False, True):
        objective = Objective(DistillationConfig(kd_loss_type=offer(Learned), logit_chunk=5))
        objective(*(scene.logits(side, factored=factored) for side in ("student", "teacher"))).total.backward()
        found.append(objective.kd_loss.loss.power.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("target", ACROSS)
@pytest.mark.parametrize("chunk", [1, 6])
def test_a_scalar_that_is_no_mean_or_sum_over_items_is_refused(offer, target, chunk):
    with pytest.raises(SignatureError, match=rf"^kd_loss_type: local:offered returned.*of {chunk} of the 12 items"):
        Scene().run(kd_loss_type=offer(target), logit_chunk=chunk, outputs=outputs())


@SCALAR
def test_a_mean_by_batch_is_one_over_items_where_a_mask_puts_them_in_a_row(offer):
    scene, keys = Scene(), {"kd_loss_type": offer(by_batchmean), "outputs": {"logits_mask": torch.ones(3, 4)}}
    assert_same(scene.run(logit_chunk=5, **keys), scene.run(factored=(), **keys))


@SCALAR
def test_what_depends_on_the_time_is_looked_at_each_time(offer):
    scene = Scene()
    objective = Objective(DistillationConfig(kd_loss_type=offer(at_the_end_across_items), logit_chunk=6))
    sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
    assert objective(*sides, progress=0.1).total > 0
    with pytest.raises(SignatureError, match=r"^kd_loss_type: local:offered returned a scalar"):
        objective(*sides, progress=0.9)


@SCALAR
def test_a_scalar_stays_one_in_pieces_so_that_micro_batches_count_alike(offer):
    assert Scene().run(kd_loss_type=offer(mean_kl), logit_chunk=5)[2].terms["kd_loss"].count == 1


@SCALAR
def test_a_sparse_teacher_is_compared_in_pieces_too(offer):
    scene, loss = Scene(), offer(mean_kl)
    keys = {"kd_loss_type": loss, "teacher": SparseLogits.top(scene.logits("teacher", factored=False), 4, 2.0)}
    keys["temperature"] = 2.0
    assert_same(scene.run(factored=("student",), logit_chunk=5, **keys), scene.run(factored=(), **keys))


def test_it_is_said_once(offer):
    scene = Scene()
    objective = Objective(DistillationConfig(kd_loss_type=offer(mean_kl), logit_chunk=5))
    sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
    with pytest.warns(UserWarning, match=r"^kd_loss_type: local:offered returned a scalar.*a mean over items"):
        objective(*sides)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(*sides)


@SCALAR
def test_looking_leaves_no_trace_in_random_numbers_and_calls_the_loss_no_more_afterwards(offer):
    scene, calls = Scene(), []

    def counting(student_logits, teacher_logits):
        calls.append(len(student_logits))
        return of_all_elements(student_logits, teacher_logits)

    objective = Objective(DistillationConfig(kd_loss_type=offer(counting), logit_chunk=6))
    sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
    state = torch.get_rng_state()
    objective(*sides)
    assert torch.equal(torch.get_rng_state(), state)
    calls.clear()
    objective(*sides)
    assert calls == [6, 6]


@SCALAR
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_scalar_runs_in_pieces_without_a_gradient(offer, mode):
    scene, loss = Scene(), offer(mean_kl)
    with mode():
        sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
        total = Objective(DistillationConfig(kd_loss_type=loss, logit_chunk=5))(*sides).total
    torch.testing.assert_close(total, scene.run(factored=(), kd_loss_type=loss)[0], rtol=1e-10, atol=0)
