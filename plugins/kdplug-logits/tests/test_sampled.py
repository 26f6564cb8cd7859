"""Losses under classes that are drawn from the teacher."""

from __future__ import annotations

import logits_oracle as oracle
import pytest
import torch
from logits_strategies import LOSSES, case

import kdplug
from kdplug_logits.sampled import draw, sampled_per_item, seed_of


def loss(draw_seed: int = 0, **settings: object) -> torch.Tensor:
    found = case(4, 9)
    return LOSSES["sampled"](found.student, found.teacher, 2.0, draw_seed=draw_seed, **settings).value


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.5])
def test_the_weights_are_an_unbiased_estimate_of_the_teacher(sharpness: float) -> None:
    teacher = case(1, 6, scale=1.0).teacher.log_softmax(-1)
    ids, weights = draw(teacher, 200_000, sharpness, seed=0)
    estimate = torch.zeros(6, dtype=torch.float64).index_add_(0, ids[0], weights[0])
    assert torch.allclose(estimate, teacher[0].exp(), atol=5e-3)


def test_value_and_gradient_are_on_average_those_of_the_whole_cross_entropy() -> None:
    found = case(4, 9, scale=1.0)
    student = found.student.requires_grad_()
    whole = oracle.cross_entropy(student, found.teacher, 2.0)
    values = [LOSSES["sampled"](student, found.teacher, 2.0, draw_seed=place).value for place in range(400)]
    mean = torch.stack(values).mean()
    gradients = [torch.autograd.grad(value, student)[0] for value in (mean, whole)]
    assert mean.item() == pytest.approx(whole.item(), rel=5e-3)
    assert (gradients[0] - gradients[1]).norm() < 0.03 * gradients[1].norm()


def test_the_largest_classes_alone_are_biased_where_draws_are_not() -> None:
    found = case(64, 100, scale=0.5)
    whole, largest = found.gradient("kl"), found.gradient("topk", k=12, rest="renorm_teacher")
    values = [LOSSES["sampled"](found.student, found.teacher, 1.0, draw_seed=place).value for place in range(50)]
    (drawn,) = torch.autograd.grad(torch.stack(values).mean(), found.student)
    assert (drawn - whole).norm() < 0.3 * (largest - whole).norm()


def test_draws_depend_on_both_seeds_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = loss()
    torch.manual_seed(2)
    assert torch.equal(loss(), first)
    assert not torch.equal(loss(draw_seed=1), first)
    assert not torch.equal(loss(seed=1), first)
    assert torch.equal(loss(draw_seed=3, seed=5), loss(draw_seed=3, seed=5))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.random.get_rng_state()
    loss()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_two_pairs_of_seeds_share_a_generator_seed() -> None:
    assert len({seed_of(seed, place) for seed in range(50) for place in range(2000)}) == 100_000


def test_more_draws_come_nearer() -> None:
    found = case(1, 40, scale=1.0)
    whole = oracle.cross_entropy(found.student, found.teacher)

    def error(draws: int) -> torch.Tensor:
        values = [
            LOSSES["sampled"](found.student, found.teacher, 1.0, draw_seed=s, draws=draws).value for s in range(40)
        ]
        return (torch.stack(values) - whole).square().mean()

    assert error(500) < 0.05 * error(5)


def test_a_weight_of_zero_adds_nothing_even_at_a_class_that_the_student_rules_out() -> None:
    student = torch.tensor([[0.0, -float("inf")]], requires_grad=True)
    value = sampled_per_item(student, torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]])).sum()
    assert value == 0
    assert torch.autograd.grad(value, student)[0].tolist() == [[-1.0, 0.0]]


def noise(chunk: int, batches: int) -> float:
    """How far one step's gradient of the head is from its mean over steps, in parts of that mean.

    A step has 32 items, cut into ``batches`` micro-batches and those into chunks. All have nearly one teacher.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 6, generator=generator, dtype=torch.float64) + 2
    weight = torch.randn(50, 6, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(50, generator=generator, dtype=torch.float64).expand(32, 50)
    objective = kdplug.Objective(
        kdplug.DistillationConfig(kd_loss_type={"name": "sampled", "draws": 4}, logit_chunk=chunk)
    )
    gradients = []
    for step in range(60):
        total = torch.zeros(50, 6, dtype=torch.float64)
        for own, theirs in zip(hidden.chunk(batches), teacher.chunk(batches), strict=True):
            loss = objective(kdplug.FactoredLogits(own, weight), theirs, step=step).total
            total += torch.autograd.grad(loss, weight)[0] / batches
        gradients.append(total)
    found = torch.stack(gradients)
    mean = found.mean(0)
    return float((found - mean).flatten(1).norm(dim=1).mean() / mean.norm())


@pytest.mark.parametrize(("chunk", "batches"), [(4, 1), (32, 8), (2, 4)])
def test_a_step_is_as_noisy_however_it_is_cut(chunk: int, batches: int) -> None:
    assert noise(chunk, batches) == pytest.approx(noise(32, 1), rel=0.15)
