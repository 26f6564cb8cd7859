"""Gradient reaches the student and the objective's own parameters, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug.objective.numerics import connected_zero


@pytest.fixture
def objective(build, match):
    return build(
        hard_label_weight=1,
        intermediate_matches=[match(proj=["linear", 6, 6]), match(loss="masked_mse", layer_S=1), match(loss="scaled")],
    ).double()


def test_it_reaches_the_student_and_the_parameters(objective, student, teacher):
    objective(student, teacher).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    for tensor in (student["logits"], *student["hidden"][:2], student["losses"][0]):
        assert tensor.grad.any()
    assert student["hidden"][2].grad is None


def test_it_never_reaches_the_teacher(objective, student, teacher):
    leaves = [teacher["logits"], *teacher["hidden"]]
    for leaf in leaves:
        leaf.requires_grad_()
    objective(student, teacher).total.backward()
    assert all(leaf.grad is None and leaf.requires_grad for leaf in leaves)


def test_it_is_that_of_finite_differences(objective, random, student, teacher):
    def total(logits, hidden):
        return objective({**student, "logits": logits, "hidden": [hidden] * 3}, teacher).total

    inputs = random(3, 4, 5, requires_grad=True), random(3, 4, 6, requires_grad=True)
    assert torch.autograd.gradcheck(total, inputs)


def test_nothing_that_was_given_is_modified(objective, student, teacher, mask):
    student |= {"inputs_mask": mask, "logits_mask": mask, "labels": torch.zeros(3, 4, dtype=torch.int64)}
    flat = [*student["hidden"], student["logits"], mask, teacher["logits"], *teacher["hidden"]]
    before = [(tensor.detach().clone(), tensor._version) for tensor in flat]
    objective(student, teacher).total.backward()
    assert all(torch.equal(a, b) and a._version == v for a, (b, v) in zip(flat, before, strict=True))


def test_a_teacher_run_under_inference_mode_will_do(build, match, student, mask):
    model, inputs = nn.Linear(6, 5).double(), torch.randn(3, 4, 6, dtype=torch.float64)
    with torch.inference_mode():
        hidden = inputs * 2
        teacher = {"logits": model(hidden), "hidden": hidden, "inputs_mask": mask.bool() & mask.bool()}
    build(kd_loss_type="ce", intermediate_matches=[match(loss="masked_mse")])(student, teacher).total.backward()
    assert student["logits"].grad.any()


def test_without_gradients_it_still_gives_the_loss(objective, student, teacher):
    expected = objective(student, teacher).total
    with torch.no_grad():
        total = objective(student, teacher).total
    assert total == expected
    assert not total.requires_grad


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_connected_zero_has_gradient_0_even_for_nan(shape, dtype):
    leaf = torch.full(shape, float("nan"), dtype=dtype, requires_grad=True)
    zero = connected_zero([leaf, leaf])
    zero.backward()
    assert zero == 0
    assert leaf.grad.shape == shape
    assert not leaf.grad.any()


def test_a_connected_zero_of_nothing_is_0():
    assert connected_zero([]) == 0


def single(outputs):
    """The same outputs as leaves in float32, in which most runs are."""
    leaf = lambda tensor: tensor.detach().float().requires_grad_()  # noqa: E731
    return {key: list(map(leaf, value)) if isinstance(value, list) else leaf(value) for key, value in outputs.items()}


def test_it_never_reaches_a_teacher_in_float32(build, match, student, teacher):
    student, teacher = single(student), single(teacher)
    build(kd_loss_type="ce", intermediate_matches=[match()])(student, teacher).total.backward()
    assert student["logits"].grad.any()
    assert all(leaf.grad is None for leaf in [teacher["logits"], *teacher["hidden"]])


def test_a_teacher_in_float32_under_inference_mode_may_be_saved(build, match, offer, student):
    offer(lambda student_features, teacher_features: (student_features * teacher_features).mean())
    with torch.inference_mode():
        hidden = torch.randn(3, 4, 6)
    student = single(student)
    keys = {"kd_loss_weight": 0, "intermediate_matches": [match(loss="offered")]}
    build(**keys)(student, {"hidden": [hidden]}).total.backward()
    assert student["hidden"][0].grad.any()
