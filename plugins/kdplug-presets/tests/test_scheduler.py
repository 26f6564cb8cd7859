"""Weight and temperature schedulers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdplug import SettingError, ShapeError
from kdplug_presets.scheduler import constant, cwsm, flsw, linear_decay, linear_growth, linear_warmup

TEMPERATURES: Any = [
    4.0,
    4,
    torch.tensor(4.0),
    torch.tensor([4.0]),
    torch.full((3, 5), 4.0),
    torch.full((3, 1, 1), 4.0),
]


def test_decay_falls_from_one_to_zero_and_growth_mirrors_it() -> None:
    steps = [i / 10 for i in range(11)]
    assert [linear_decay(x) for x in steps] == [1 - x for x in steps]
    assert [linear_growth(x) for x in steps] == steps


@given(progress=st.floats(-0.5, 1.5), share=st.floats(1e-3, 1.0))
def test_warmup_grows_to_one_at_its_share_of_the_run_and_stays_there(progress: float, share: float) -> None:
    weight = linear_warmup(progress, share=share)
    assert weight == pytest.approx(min(max(progress, 0.0) / share, 1.0))
    assert linear_warmup(progress, share=1.0) == linear_growth(progress)
    assert linear_warmup(share, share=share) == 1.0


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_weights_stay_between_zero_and_one_outside_the_run(progress: float) -> None:
    assert {linear_decay(progress), linear_growth(progress)} == {0.0, 1.0}


def test_constant_is_the_configured_temperature() -> None:
    assert constant(torch.randn(3, 4), torch.randn(3, 4), 2.5) == 2.5


def test_cwsm_never_gives_a_negative_temperature() -> None:
    student = torch.cat([torch.zeros(1, 1000), 100 * torch.eye(1000)[:3]])
    temperature = cwsm(student, student, 4.0, beta=1.0)
    assert temperature.min().item() == pytest.approx(0.1)


def test_flsw_never_gives_a_negative_or_zero_temperature() -> None:
    student = torch.randn(50, 5)
    assert flsw(student, -student, 1.0, beta=50.0, gamma=2.0, min_temperature=0.25).min() >= 0.25
    assert flsw(student, torch.randn(50, 5), 1.0, beta=50.0, gamma=2.0).min() >= 0.1


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 3.0])
def test_flsw_gives_no_nan_where_the_student_is_the_teacher(gamma: float) -> None:
    for seed in range(20):
        logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(seed)) * 1e4
        assert flsw(logits, logits, 4.0, beta=1.0, gamma=gamma).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_logits_that_are_all_equal_give_a_finite_positive_temperature(value: float) -> None:
    even = torch.full((3, 4), value)
    for result in (flsw(torch.randn(3, 4), even, 4.0, beta=1.0, gamma=0.5), cwsm(even, even, 4.0, beta=1.0)):
        assert (result.isfinite() & (result > 0)).all()


def test_a_class_that_is_ruled_out_gives_a_finite_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, -float("inf")], [0.5, 0.1, 0.2]])
    assert flsw(logits, logits.flip(0), 4.0, beta=1.0, gamma=0.5).isfinite().all()
    assert cwsm(logits, logits, 4.0, beta=1.0).isfinite().all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_temperature_is_given_for_each_item_in_single_precision_at_least(
    temperature: Any, dtype: torch.dtype
) -> None:
    student, teacher = torch.randn(3, 5, 7, dtype=dtype), torch.randn(3, 5, 7, dtype=dtype)
    for result in (flsw(student, teacher, temperature, beta=1, gamma=1), cwsm(student, teacher, temperature, beta=1)):
        assert result.shape == (3, 5)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert result.mean().item() == pytest.approx(4.0, rel=1e-3)


def test_temperatures_carry_no_gradient_and_leave_logits_alone() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    before = student.detach().clone()
    assert not flsw(student, teacher, 4.0, beta=1, gamma=1).requires_grad
    assert not cwsm(student, teacher, 4.0, beta=1).requires_grad
    assert torch.equal(student.detach(), before)


def test_no_items_give_no_temperatures() -> None:
    empty = torch.zeros(0, 5)
    assert flsw(empty, empty, 4.0, beta=1, gamma=1).shape == cwsm(empty, empty, 4.0, beta=1).shape == (0,)


@pytest.mark.parametrize("scheduler", [flsw, cwsm])
def test_an_ambiguous_base_temperature_or_other_classes_are_errors(scheduler: Any) -> None:
    settings = {"beta": 1.0} | ({"gamma": 1.0} if scheduler is flsw else {})
    with pytest.raises(ShapeError, match="one temperature per item"):
        scheduler(torch.randn(3, 3, 5), torch.randn(3, 3, 5), torch.ones(3), **settings)
    with pytest.raises(ShapeError, match="'classes': 5 against 6"):
        scheduler(torch.randn(3, 5), torch.randn(3, 6), 4.0, **settings)
    with pytest.raises(SettingError, match="positive"):
        scheduler(torch.randn(3, 5), torch.randn(3, 5), -4.0, **settings)


def test_settings_stand_in_textbrewers_order_and_have_no_default_where_it_has_none() -> None:
    def settings(scheduler: Any) -> list[tuple[str, bool]]:
        given = inspect.signature(scheduler).parameters.values()
        return [(p.name, p.default is p.empty) for p in given if p.kind is p.KEYWORD_ONLY]

    assert settings(flsw) == [("beta", True), ("gamma", True), ("eps", False), ("min_temperature", False)]
    assert settings(cwsm) == [("beta", True), ("min_temperature", False)]
