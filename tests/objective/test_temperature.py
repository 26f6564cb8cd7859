"""Temperatures that are fixed, and those that a scheduler sets."""

from __future__ import annotations

import pytest
import torch

from kdplug import ConfigError, ShapeError, SignatureError
from kdplug.objective.schedule import MINIMUM


@pytest.fixture
def seen(offer):
    """Every temperature that an offered kd loss was called with."""
    calls = []

    def loss(student_logits, teacher_logits, temperature):
        calls.append(temperature)
        return (student_logits - teacher_logits).square().mean()

    offer(loss, name="watch")
    return calls


def run(build, offer, scheduler, student, teacher, **keys):
    name = offer(scheduler, "temperature_schedulers")
    return build(kd_loss_type="watch", temperature=3, temperature_scheduler=name)(student, teacher, **keys)


def test_without_a_scheduler_it_is_the_configured_number(build, seen, student, teacher):
    build(kd_loss_type="watch", temperature=3)(student, teacher)
    assert seen == [3.0]


def test_a_scheduler_sets_one_for_each_item(build, offer, seen, student, teacher):
    def spread(student_logits, teacher_logits, temperature):
        return temperature + student_logits[..., 0].abs()

    run(build, offer, spread, student, teacher)
    assert torch.equal(seen[0], 3 + student["logits"][..., 0].abs())
    assert not seen[0].requires_grad


def test_a_scheduler_sees_the_selected_logits(build, offer, seen, student, teacher, mask):
    student["logits_mask"] = mask
    run(build, offer, lambda student_logits, temperature: temperature + student_logits[..., 0] ** 2, student, teacher)
    assert seen[0].shape == (7,)


def test_a_scheduler_gets_the_progress(build, offer, seen, student, teacher):
    run(build, offer, lambda temperature, progress: temperature * progress, student, teacher, progress=0.5)
    assert seen == [1.5]


@pytest.mark.parametrize("value", [0.0, -432.0, torch.tensor(-1.0), torch.full((3, 4), -1.0)])
def test_it_is_clamped_to_the_positive_numbers(build, offer, seen, student, teacher, value):
    run(build, offer, lambda temperature: value, student, teacher)
    assert torch.equal(torch.as_tensor(seen[0]), torch.full_like(torch.as_tensor(value), MINIMUM))


def test_one_of_another_shape_is_an_error(build, offer, seen, student, teacher):
    with pytest.raises(
        ShapeError,
        match=r"^temperature_scheduler: local:offered returned temperatures of shape \[4\] for items of shape \[3, 4\]",
    ):
        run(build, offer, lambda temperature: torch.ones(4), student, teacher)


@pytest.mark.parametrize("value", [None, "4", float("nan")])
def test_one_that_is_no_number_is_an_error(build, offer, seen, student, teacher, value):
    with pytest.raises(SignatureError, match=r"^temperature_scheduler: local:offered must return a tensor over items"):
        run(build, offer, lambda temperature: value, student, teacher)


@pytest.mark.parametrize("keys", [{}, {"kd_loss_weight": 0}], ids=["with a kd loss", "without"])
def test_a_match_gets_the_scheduled_temperature_of_the_step(build, offer, match, seen, student, teacher, keys):
    given = []

    def matched(student_features, teacher_features, temperature):
        given.append(temperature)
        return (student_features - teacher_features).square().mean() * temperature

    rising = offer(
        lambda temperature, step, total_steps: temperature * (1 + step / total_steps), "temperature_schedulers"
    )
    objective = build(
        kd_loss_type="watch",
        temperature=3,
        temperature_scheduler=rising,
        intermediate_matches=[match(loss=offer(matched, name="matched"))],
        **keys,
    )
    for step in range(3):
        objective(student, teacher, step=step, total_steps=2)
    assert given == [3, 4.5, 6]
    assert seen == ([] if keys else given)


def test_a_match_has_no_logits_to_schedule_a_temperature_by(build, offer, match):
    matched = offer(lambda student_features, temperature: student_features.mean() * temperature, name="matched")
    by_item = offer(lambda student_logits, temperature: student_logits[..., 0], "temperature_schedulers")
    with pytest.raises(
        ConfigError,
        match=r"^temperature_scheduler: local:offered computes temperatures from student_logits, but local:matched compares features",
    ):
        build(temperature_scheduler=by_item, intermediate_matches=[match(loss=matched, name="mine")])
    build(temperature_scheduler=by_item, intermediate_matches=[match()])


HIGH = r"temperature 20000: at 1000 and above, .* even negative values\. Use a lower temperature"


def test_a_configured_temperature_that_float32_cannot_hold_is_warned_of(build, seen, student, teacher):
    with pytest.warns(UserWarning, match=HIGH):
        objective = build(kd_loss_type="watch", temperature=20_000)
    objective(student, teacher)
    build(kd_loss_type="watch", temperature=999)
    build(kd_loss_weight=0, hard_label_weight=1, temperature=20_000)


@pytest.mark.parametrize("value", [20_000, torch.tensor(2e4), torch.ones(3, 4).index_fill(0, torch.tensor(1), 2e4)])
def test_a_scheduled_temperature_that_float32_cannot_hold_is_warned_of_once(
    build, offer, seen, student, teacher, value
):
    late = offer(lambda temperature, step: value if step else 1.0, "temperature_schedulers")
    objective = build(kd_loss_type="watch", temperature=20_000, temperature_scheduler=late)
    objective(student, teacher)
    with pytest.warns(UserWarning, match=HIGH):
        objective(student, teacher, step=1)
    objective(student, teacher, step=2)


def test_a_scheduler_with_a_buffer_is_saved_with_the_objective(build, offer, student, teacher):
    class Tracking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor(5.0))

        def forward(self, temperature):
            return self.mean

    objective = build(temperature_scheduler=offer(Tracking, "temperature_schedulers"))
    assert list(objective.state_dict()) == ["configured.0.temperature.scheduler.mean"]
    assert objective(student, teacher).total == build(temperature=5)(student, teacher).total
