"""Weights over the run."""

from __future__ import annotations

import pytest
import torch

from kdplug import ConfigError, SignatureError


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_scheduled_weight_is_base_times_schedule(build, student, teacher, progress):
    objective = build(kd_loss_weight=3, kd_loss_weight_scheduler="growth", hard_label_weight=1)
    report = objective(student, teacher, progress=progress)
    assert report.terms["kd_loss"].weight == 3 * progress
    expected = build()(student, teacher).total * 3 * progress + student["losses"][0]
    torch.testing.assert_close(report.total, expected, rtol=1e-13, atol=0)


def test_without_a_weight_the_base_is_1(build, student, teacher):
    report = build(hard_label_weight_scheduler="growth")(student, teacher, progress=0.25)
    assert report.terms["hard_label_loss"].weight == 0.25


def test_a_match_can_be_scheduled(build, match, student, teacher):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(weight=2, weight_scheduler="growth")])
    (term,) = objective(student, teacher, progress=0.5).terms.values()
    assert term.weight == 1


def test_the_same_progress_gives_the_same_loss_whatever_came_before(build, student, teacher):
    objective = build(kd_loss_weight_scheduler="growth")
    first = objective(student, teacher, progress=0.5).total
    objective(student, teacher, progress=1.0)
    assert objective(student, teacher, progress=0.5).total == first


def test_a_scheduler_gets_the_steps_it_asks_for(build, offer, student, teacher):
    name = offer(lambda step, total_steps, progress: step / total_steps, "weight_schedulers")
    report = build(kd_loss_weight_scheduler=name)(student, teacher, progress=0.1, step=3, total_steps=4)
    assert report.terms["kd_loss"].weight == 0.75


def test_a_scheduler_with_settings(build, offer, student, teacher):
    def power(progress, *, exponent: float = 1.0):
        return progress**exponent

    objective = build(kd_loss_weight_scheduler=[offer(power, "weight_schedulers"), 3])
    assert objective(student, teacher, progress=0.5).terms["kd_loss"].weight == 0.125


def test_a_scheduler_may_return_a_scalar_tensor(build, offer, student, teacher):
    name = offer(lambda progress: torch.tensor(1.0) * progress, "weight_schedulers")
    assert build(kd_loss_weight_scheduler=name)(student, teacher, progress=0.5).terms["kd_loss"].weight == 0.5


@pytest.mark.parametrize("wrong", [None, "x", float("nan"), float("inf"), torch.ones(2)])
def test_a_scheduler_that_returns_no_finite_number_is_named(build, offer, student, teacher, wrong):
    objective = build(kd_loss_weight_scheduler=offer(lambda progress: wrong, "weight_schedulers"))
    with pytest.raises(SignatureError, match="local:offered must return a finite number"):
        objective(student, teacher)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_0_and_1_is_an_error(build, student, teacher, progress):
    with pytest.raises(ConfigError, match=r"^progress: must be in \[0, 1\], got"):
        build()(student, teacher, progress=progress)


def test_a_weight_that_is_0_for_now_computes_nothing(build, offer, student, teacher):
    def refuse(student_logits, teacher_logits):
        raise AssertionError("called")

    objective = build(kd_loss_type=offer(refuse), kd_loss_weight_scheduler="growth", hard_label_weight=1)
    report = objective(student, {})
    assert (report.terms["kd_loss"].count, report.terms["kd_loss"].weight) == (0, 0)
    assert report.total == student["losses"][0]


def test_every_weight_at_0_for_now_gives_a_total_that_can_be_differentiated(build, student, teacher):
    total = build(kd_loss_weight_scheduler="growth")(student, teacher).total
    total.backward()
    assert total == 0
    assert not student["logits"].grad.any()


def test_parameters_of_a_term_that_is_0_for_now_stay_in_the_graph(build, match, student, teacher):
    later = match(loss="scaled", weight_scheduler="growth", proj=["linear", 6, 6])
    objective = build(intermediate_matches=[later]).double()
    student["hidden"][0].data.fill_(float("nan"))
    objective(student, teacher).total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())
    assert not student["hidden"][0].grad.any()
