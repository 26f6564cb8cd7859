"""A loss that returns a scalar runs in chunks of items where it declares how it reduces them, and on all logits otherwise."""

from __future__ import annotations

import warnings

import psutil
import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from torch import nn
from torch.nn import functional as F

import kdplug
from kdplug import DistillationConfig, LossSum, Objective, OutputsError, SignatureError, SparseLogits

SIDES = [("student", "teacher"), ("student",), ("teacher",)]


def softened(student_logits, teacher_logits, temperature):
    """Log-probabilities of both sides."""
    return [(side / temperature).log_softmax(-1) for side in (student_logits, teacher_logits)]


@kdplug.coarsens
@kdplug.mean_over_items
def mean_kl(student_logits, teacher_logits, temperature):
    """As most people write it."""
    own, theirs = softened(student_logits, teacher_logits, temperature)
    return (theirs.exp() * (theirs - own)).sum(-1).mean() * temperature**2


@kdplug.mean_over_items
def of_all_elements(student_logits, teacher_logits):
    return F.mse_loss(student_logits, teacher_logits)


@kdplug.sum_over_items
def summed(student_logits, teacher_logits, temperature):
    own, theirs = softened(student_logits, teacher_logits, temperature)
    return F.kl_div(own, theirs, reduction="sum", log_target=True)


@kdplug.mean_over_items
def of_labels(student_logits, teacher_logits, labels):
    gathered = student_logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1))
    return (gathered.squeeze(-1) * teacher_logits.amax(-1)).mean()


class Learned(nn.Module):
    mean_over_items = True

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits):
        return ((student_logits - teacher_logits).abs() ** self.power).mean()


def worst(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean(-1).max()


def dropped(student_logits, teacher_logits, draw_seed):
    kept = torch.rand(student_logits.shape, generator=torch.Generator().manual_seed(draw_seed)) > 0.5
    return ((student_logits - teacher_logits).square() * kept).mean()


def outputs():
    return {"labels": torch.arange(12).view(3, 4) % CLASSES}


@pytest.mark.parametrize("target", [mean_kl, of_all_elements, summed, of_labels])
@pytest.mark.parametrize("factored", SIDES)
@pytest.mark.parametrize("chunk", [1, 5, 11])
def test_a_declared_scalar_gives_the_same_in_chunks_as_on_full_logits(offer, target, factored, chunk):
    scene, keys = Scene(), {"kd_loss_type": offer(target), "temperature": 2.0, "outputs": outputs()}
    assert_same(scene.run(factored=factored, logit_chunk=chunk, **keys), scene.run(factored=(), **keys))


def test_a_declared_loss_that_learns_gets_its_gradient(offer):
    scene, found = Scene(), []
    for factored in (False, True):
        objective = Objective(DistillationConfig(kd_loss_type=offer(Learned), logit_chunk=5))
        objective(*(scene.logits(side, factored=factored) for side in ("student", "teacher"))).total.backward()
        found.append(objective.configured["0"].loss.power.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=0)


def test_a_scalar_in_chunks_has_count_1_so_that_micro_batches_count_alike(offer):
    assert Scene().run(kd_loss_type=offer(mean_kl), logit_chunk=5)[2].terms["kd_loss"].count == 1


def test_a_sparse_teacher_is_compared_in_chunks_too(offer):
    scene, loss = Scene(), offer(mean_kl)
    keys = {"kd_loss_type": loss, "teacher": SparseLogits.top(scene.logits("teacher", factored=False), 4, 2.0)}
    keys["temperature"] = 2.0
    assert_same(scene.run(factored=("student",), logit_chunk=5, **keys), scene.run(factored=(), **keys))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_declared_scalar_runs_in_chunks_without_a_gradient(offer, mode):
    scene, loss = Scene(), offer(mean_kl)
    with mode():
        sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
        total = Objective(DistillationConfig(kd_loss_type=loss, logit_chunk=5))(*sides).total
    torch.testing.assert_close(total, scene.run(factored=(), kd_loss_type=loss)[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("target", [worst, dropped])
def test_a_scalar_without_a_declaration_gets_all_logits_at_once_and_a_warning_once(offer, target, monkeypatch):
    small_chunks(monkeypatch)
    scene = Scene()
    objective = Objective(DistillationConfig(kd_loss_type=offer(target)))
    sides = [scene.logits(side, factored=True) for side in ("student", "teacher")]
    with pytest.warns(UserWarning, match=r"^local:offered declares no reduction.*all 12 items.*mean_over_items"):
        total = objective(*sides).total
    dense = Objective(DistillationConfig(kd_loss_type=offer(target)))
    torch.testing.assert_close(
        total, dense(*(scene.logits(side, factored=False) for side in ("student", "teacher"))).total
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(*sides)


def test_all_logits_that_do_not_fit_into_memory_are_refused_before_they_are_computed(offer, monkeypatch):
    small_chunks(monkeypatch)
    free = psutil.virtual_memory()._replace(available=4 * 12 * CLASSES * 4 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(OutputsError, match=r"^kd_loss_type: local:offered declares no reduction.*GiB are free"):
        Scene().run(kd_loss_type=offer(worst))


def test_a_chunk_of_ones_own_asks_for_a_declaration(offer):
    with pytest.raises(OutputsError, match=r"^logit_chunk: is 6, but local:offered declares no reduction"):
        Scene().run(kd_loss_type=offer(worst), logit_chunk=6)


def test_both_declarations_are_refused(offer):
    with pytest.raises(SignatureError, match="declares both mean_over_items and sum_over_items"):
        Objective(
            DistillationConfig(
                kd_loss_type=offer(
                    kdplug.sum_over_items(kdplug.mean_over_items(lambda student_logits, teacher_logits: 0))
                )
            )
        )


@pytest.mark.parametrize("declare", [kdplug.sum_over_items, kdplug.mean_over_items])
def test_a_declaration_on_a_loss_that_returns_its_count_is_an_error(offer, declare):
    @declare
    def counted(student_logits, teacher_logits) -> LossSum:
        return LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))

    with pytest.raises(
        SignatureError, match=r"^kd_loss_type: local:offered declares .*_over_items, but returned a LossSum"
    ):
        Scene().run(kd_loss_type=offer(counted), logit_chunk=6)


def test_an_annotation_that_is_not_kept_is_an_error(offer):
    def annotated(student_logits, teacher_logits) -> LossSum:
        return of_all_elements(student_logits, teacher_logits)

    with pytest.raises(
        SignatureError,
        match=r"^kd_loss_type: local:offered is annotated to return a LossSum, but returned a scalar.*6 of the 12 items",
    ):
        Scene().run(kd_loss_type=offer(annotated), logit_chunk=6)


def small_chunks(monkeypatch):
    """Chunks of five items under ``logit_chunk: auto``."""
    from kdplug.objective.chunked import factored_kd

    monkeypatch.setattr(factored_kd, "chunk_length", lambda *_: 5)
