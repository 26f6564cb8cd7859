"""Closed forms through the objective: factored heads and caches, against the same loss on dense logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdplug import DistillationConfig, FactoredLogits, Objective, SignatureError, SparseLogits

ITEMS, CLASSES = 12, 9
LOSSES = [
    "kl",
    "reverse_kl",
    {"name": "jsd", "beta": 0.3, "normalize": True},
    {"name": "jsd", "beta": 1},
    {"name": "skew_kl", "t2": False},
    {"name": "skew_reverse_kl", "skew": 0.4},
    "tvd",
    {"name": "topk", "k": 3},
    {"name": "topk", "k": 3, "rest": "zero"},
    {"name": "topk", "k": 3, "rest": "renorm_teacher", "t2": False},
]


def draw(*shape, seed):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(loss, teacher, *, factored):
    factors = [draw(ITEMS, 4, seed=1), draw(CLASSES, 4, seed=2), draw(CLASSES, seed=3)]
    for factor in factors:
        factor.requires_grad_()
    logits = FactoredLogits(*factors, scale=0.7, softcap=4.0)
    config = DistillationConfig(kd_loss_type=loss, temperature=2.0, logit_chunk=5)
    total = Objective(config)(logits if factored else logits.dense(), teacher).total
    return [total.detach(), *torch.autograd.grad(total, factors)]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("k", [None, 4, CLASSES])
def test_a_factored_student_gets_what_a_dense_one_gets(loss, k):
    logits = draw(ITEMS, CLASSES, seed=4)
    teacher: Tensor | SparseLogits = logits if k is None else SparseLogits.top(logits, k, 2.0)
    for found, expected in zip(run(loss, teacher, factored=True), run(loss, teacher, factored=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_dist_compares_items_so_it_is_refused_in_pieces_and_right_in_one():
    teacher = draw(ITEMS, CLASSES, seed=4)
    hidden, weight = draw(ITEMS, 4, seed=1).requires_grad_(), draw(CLASSES, 4, seed=2)
    factored = FactoredLogits(hidden, weight)
    whole = Objective(DistillationConfig(kd_loss_type="dist", logit_chunk="whole"))
    torch.testing.assert_close(whole(factored, teacher).total, whole(factored.dense(), teacher).total)
    with pytest.raises(
        SignatureError,
        match=r"^kd_loss_type: kdplug-logits:dist is annotated to return a LossSum, but returned a scalar",
    ):
        Objective(DistillationConfig(kd_loss_type="dist", logit_chunk=5))(factored, teacher)


def test_the_part_of_dist_that_compares_classes_runs_in_pieces():
    teacher, loss = draw(ITEMS, CLASSES, seed=4), {"name": "dist", "gamma": 0}
    for found, expected in zip(run(loss, teacher, factored=True), run(loss, teacher, factored=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_item_whose_every_class_is_ruled_out_gives_nan_in_pieces_too(loss, side):
    teacher, bias = draw(ITEMS, CLASSES, seed=4), torch.zeros(CLASSES, dtype=torch.float64)
    (bias if side == "student" else teacher[3]).fill_(-torch.inf)
    factored = FactoredLogits(draw(ITEMS, 4, seed=1), draw(CLASSES, 4, seed=2), bias)
    total = Objective(DistillationConfig(kd_loss_type=loss, logit_chunk=5))(factored, teacher).total
    assert total.isnan()
