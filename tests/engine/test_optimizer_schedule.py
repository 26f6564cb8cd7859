"""The learning-rate scheduler."""

from __future__ import annotations

import pytest
from small_run import make_student, sgd
from torch import nn
from torch.optim import lr_scheduler as lr

from kdplug.engine.optimizer import add_groups, make_scheduler
from kdplug.errors import ConfigError, RunError


@pytest.fixture
def optimizer():
    return sgd(make_student(), lr=1.0)


def add_projection(optimizer):
    return add_groups(optimizer, [{"params": list(nn.Linear(2, 2).parameters()), "lr": 0.5}])


def rates(optimizer, scheduler, steps=4):
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_any_callable_that_takes_an_optimizer_will_do(optimizer):
    def halved(optimizer, *, every):
        return lr.StepLR(optimizer, every, gamma=0.5)

    made = make_scheduler(optimizer, new_groups=0, scheduler_class=halved, scheduler_args={"every": 2})
    assert rates(optimizer, made) == [[1.0], [1.0], [0.5], [0.5]]


def test_no_scheduler_is_none(optimizer):
    assert make_scheduler(optimizer, new_groups=0) is None


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr.LambdaLR(o, lambda step: min(1.0, (step + 1) / 3)),
        lambda o: lr.StepLR(o, 2),
        lambda o: lr.ExponentialLR(o, 0.5),
        lambda o: lr.CosineAnnealingLR(o, 4),
        lambda o: lr.PolynomialLR(o, 4),
    ],
    ids=["lambda", "warm-up", "step", "exponential", "cosine", "polynomial"],
)
def test_a_scheduler_built_before_the_projections_treats_them_as_one_built_after(build):
    """Defect 2.1.8: a prebuilt scheduler and any projection raised ValueError."""
    early, late = sgd(make_student(), lr=1.0), sgd(make_student(), lr=1.0)
    before = build(early)
    make_scheduler(early, new_groups=add_projection(early), scheduler=before)
    add_projection(late)
    for found, expected in zip(rates(early, before), rates(late, build(late)), strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr.OneCycleLR(o, 1.0, total_steps=4),
        lr.LinearLR,
        lambda o: lr.SequentialLR(o, [lr.StepLR(o, 1), lr.StepLR(o, 2)], [2]),
    ],
    ids=["one-cycle", "linear", "sequential"],
)
def test_a_prebuilt_scheduler_that_cannot_be_extended_is_refused_and_the_way_out_named(optimizer, build):
    scheduler = build(optimizer)
    with pytest.raises(RunError, match="Pass scheduler_class and scheduler_args"):
        make_scheduler(optimizer, new_groups=add_projection(optimizer), scheduler=scheduler)


def test_a_prebuilt_scheduler_that_has_begun_cannot_be_extended(optimizer):
    scheduler = lr.StepLR(optimizer, 1)
    rates(optimizer, scheduler, steps=1)
    with pytest.raises(RunError, match="cannot be extended"):
        make_scheduler(optimizer, new_groups=add_projection(optimizer), scheduler=scheduler)


def test_a_prebuilt_scheduler_without_new_groups_is_taken_as_it_is(optimizer):
    scheduler = lr.OneCycleLR(optimizer, 1.0, total_steps=4)
    assert make_scheduler(optimizer, new_groups=0, scheduler=scheduler) is scheduler


def test_a_scheduler_of_another_optimizer_is_an_error(optimizer):
    with pytest.raises(RunError, match="was built for a different optimizer"):
        make_scheduler(optimizer, new_groups=0, scheduler=lr.StepLR(sgd(make_student()), 1))


def test_plateau_needs_a_metric_and_says_so(optimizer):
    """Defect 2.1.13: ReduceLROnPlateau raised TypeError at the first step."""
    with pytest.raises(RunError, match="ReduceLROnPlateau needs a metric"):
        make_scheduler(optimizer, new_groups=0, scheduler_class=lr.ReduceLROnPlateau, scheduler_args={})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler_class": lr.StepLR}, r"^scheduler_args: missing: StepLR is called as StepLR\("),
        ({"scheduler_args": {}}, "^scheduler_args: has no effect without scheduler_class"),
        (
            {"scheduler_class": lr.StepLR, "scheduler_args": {"optimizer": 1}},
            "^scheduler_args: must not contain 'optimizer'",
        ),
        ({"scheduler_class": lr.StepLR, "scheduler_args": {}, "scheduler": object()}, "^scheduler: pass either"),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors(optimizer, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_scheduler(optimizer, new_groups=0, **arguments)
