"""What becomes of several teachers' logits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdplug
from kdplug import OutputsError, SettingError, ShapeError
from kdplug_presets.scheduler import cwsm, flsw
from kdplug_presets.teacher_combiner import entropy_gate, mean_logits, mean_probs, select, weighted

INF = float("inf")
LABELS = torch.tensor([0, 1, -100])


def drawn(teachers: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*(shape or (3, 5)), generator=generator, dtype=torch.float64).to(dtype) for _ in range(teachers)
    ]


def every(teachers: list[torch.Tensor], labels: torch.Tensor = LABELS) -> dict[str, torch.Tensor]:
    """Each combiner's result, in a form in which all teachers take part alike."""
    return {
        "mean_logits": mean_logits(teachers),
        "mean_probs": mean_probs(teachers, 2.0),
        "weighted": weighted(teachers, weights=[1.0] * len(teachers)),
        "entropy_gate": entropy_gate(teachers, gate_temperature=0.3),
        "select": select(teachers, labels),
    }


NAMES = pytest.mark.parametrize("name", list(every(drawn(1))))


@NAMES
def test_one_teacher_is_that_teacher(name: str) -> None:
    (teacher,) = drawn(1)
    found, expected = every([teacher])[name], teacher
    if name == "mean_probs":
        found, expected = (found / 2).softmax(-1), (teacher / 2).softmax(-1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-15)


@NAMES
def test_two_equal_teachers_are_one(name: str) -> None:
    (teacher,) = drawn(1)
    one, two = every([teacher])[name], every([teacher, teacher])[name]
    assert torch.allclose(one, two, rtol=1e-15, atol=1e-15)


@NAMES
@given(seed=st.integers(0, 10**6), count=st.integers(2, 4))
def test_the_order_of_teachers_does_not_matter(name: str, seed: int, count: int) -> None:
    teachers = drawn(count, seed=seed)
    results = [every(list(order))[name] for order in itertools.islice(itertools.permutations(teachers), 6)]
    assert all(torch.allclose(results[0], other, rtol=0, atol=1e-14) for other in results)


def test_mean_logits_is_the_mean_and_the_geometric_mean_of_distributions() -> None:
    first, second = drawn(2)
    found = mean_logits([first, second])
    assert torch.equal(found, (first + second) / 2)
    geometric = (first.softmax(-1) * second.softmax(-1)).sqrt()
    assert torch.allclose(found.softmax(-1), geometric / geometric.sum(-1, keepdim=True), atol=1e-15)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0, torch.full((3,), 3.0).double()])
def test_mean_probs_soften_to_the_mean_of_the_softened_distributions(temperature: Any) -> None:
    teachers = drawn(3)
    tau = temperature.unsqueeze(-1) if isinstance(temperature, torch.Tensor) else temperature
    expected = sum((teacher / tau).softmax(-1) for teacher in teachers) / 3
    assert torch.allclose((mean_probs(teachers, temperature) / tau).softmax(-1), expected, atol=1e-15)


def test_defect_2_2_16_a_loud_teacher_decides_mean_logits_and_not_mean_probs() -> None:
    loud, quiet = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert mean_logits([loud, quiet]).softmax(-1)[0, 0] > 0.999
    assert mean_probs([loud, quiet]).softmax(-1)[0, 0].item() == pytest.approx(0.5, abs=0.01)


def test_weights_are_divided_by_their_sum() -> None:
    first, second = drawn(2)
    found = weighted([first, second], weights=[3.0, 1.0])
    assert torch.equal(found, first * 0.75 + second * 0.25)
    assert torch.equal(found, weighted([first, second], weights=[0.75, 0.25]))


@pytest.mark.parametrize("garbage", [INF, -INF, float("nan")])
def test_weights_1_and_0_select_the_first_whatever_the_second_holds(garbage: float) -> None:
    first, second = drawn(2)
    second[0, 0] = garbage
    assert torch.equal(weighted([first, second], weights=[1.0, 0.0]), first)
    assert torch.equal(select([first, second], index=0), first)


def test_a_warm_gate_is_the_mean_and_a_cold_one_the_surest_teacher() -> None:
    teachers = drawn(3, 20, 5)
    assert torch.allclose(entropy_gate(teachers, gate_temperature=1e9), mean_logits(teachers), atol=1e-8)
    entropy = torch.stack([torch.special.entr(t.softmax(-1)).sum(-1) for t in teachers])
    surest = torch.stack(teachers)[entropy.argmin(0), torch.arange(20)]
    assert torch.allclose(entropy_gate(teachers, gate_temperature=1e-5), surest, atol=1e-8)


def test_the_gate_weighs_item_by_item_as_it_says() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]).double(), torch.zeros(1, 2).double()
    p = sure.softmax(-1)[0, 0].item()
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p), math.log(2)]
    first, second = (math.exp(-entropy / 0.5) for entropy in entropies)
    expected = sure * first / (first + second)
    assert torch.allclose(entropy_gate([sure, unsure], gate_temperature=0.5), expected, atol=1e-14)


def test_select_takes_the_teacher_that_is_surest_of_the_label_item_by_item() -> None:
    a = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    expected = torch.stack([a[0], b[1], b[2]])  # by label 0, by label 1, and where there is none, the surest
    assert torch.equal(select([a, b], LABELS), expected)


def test_select_by_label_does_not_read_what_it_leaves_out() -> None:
    good, bad = drawn(2)
    bad[0, 0] = -INF
    assert torch.equal(select([good, bad], torch.zeros(3, dtype=torch.long))[0], good[0])


def test_of_equally_sure_teachers_the_first_is_taken() -> None:
    (teacher,) = drawn(1)
    shifted = teacher + 4.0
    assert torch.equal(select([teacher, shifted], torch.tensor([0, 1, 2]))[0], teacher[0])


@pytest.mark.parametrize("name", ["mean_logits", "weighted", "entropy_gate"])
def test_a_class_that_a_teacher_rules_out_is_ruled_out(name: str) -> None:
    teachers = drawn(2)
    teachers[1][0, 2] = -INF
    found = every(teachers)[name]
    assert found[0, 2] == -INF
    assert found[1:].isfinite().all()


def test_mean_probs_rule_a_class_out_where_every_teacher_does() -> None:
    teachers = drawn(2)
    teachers[0][0, 1] = teachers[0][0, 2] = teachers[1][0, 2] = -INF
    found = mean_probs(teachers)
    assert found[0, 1].isfinite()
    assert found[0, 2] == -INF


@NAMES
def test_half_precision_and_large_logits_give_finite_float32(name: str) -> None:
    teachers = [(t * 1e4).clamp(-6e4, 6e4).half() for t in drawn(2)]
    found = every(teachers)[name]
    assert found.dtype is torch.float32
    assert found.isfinite().all()


@NAMES
def test_no_gradient_reaches_a_teacher_and_no_input_is_changed(name: str) -> None:
    teachers = [t.requires_grad_() for t in drawn(2)]
    before = [t.detach().clone() for t in teachers]
    assert not every(teachers)[name].requires_grad
    assert all(map(torch.equal, before, (t.detach() for t in teachers)))


@NAMES
def test_any_number_of_axes_will_do(name: str) -> None:
    teachers = drawn(2, 3, 5)
    deep = every([teacher.reshape(3, 1, 5) for teacher in teachers], LABELS.reshape(3, 1))[name]
    assert torch.equal(deep.reshape(3, 5), every(teachers)[name])


@NAMES
def test_teachers_that_differ_in_shape_are_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match=r"teacher_logits_list\[0\] \[3, 5\] and teacher_logits_list\[1\] \[3, 4\]"):
        every([drawn(1)[0], torch.randn(3, 4)])


def test_what_cannot_be_meant_is_an_error() -> None:
    teachers = drawn(2)
    with pytest.raises(SettingError, match="weights: must contain one weight for each of the 2 teachers, got 3"):
        weighted(teachers, weights=[1.0, 1.0, 1.0])
    with pytest.raises(SettingError, match=r"index: must be less than 2, the number of teachers, got 2"):
        select(teachers, index=2)
    with pytest.raises(OutputsError, match="needs labels"):
        select(teachers)
    with pytest.raises(OutputsError, match="there are no teachers to combine"):
        mean_logits([])


@pytest.mark.usefixtures("isolated_plugins")
@pytest.mark.parametrize("scheduler", [["cwsm", 1.5], ["flsw", 1.0, 1.0]])
def test_mean_probs_takes_the_mean_at_the_scheduled_temperature(scheduler: list[Any]) -> None:
    """The loss is then that against the arithmetic mean of what the teachers say at the temperature of the loss."""
    generator = torch.Generator().manual_seed(0)
    student, one, two = (torch.randn(6, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(3))
    seen: list[torch.Tensor] = []

    def loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        seen.extend([teacher_logits, temperature.unsqueeze(-1)])
        return (student_logits - teacher_logits).square().mean()

    kdplug.losses.register("watching")(loss)
    kdplug.teacher_combiners.register("mean_probs")(mean_probs)
    for entry in (cwsm, flsw):
        kdplug.temperature_schedulers.register(entry.__name__)(entry)
    config = kdplug.DistillationConfig(
        kd_loss_type="watching", temperature=2.0, temperature_scheduler=scheduler, teacher_combiner="mean_probs"
    )
    kdplug.Objective(config, teachers=2)(student, [{"logits": one}, {"logits": two}])
    combined, warmth = seen
    assert warmth.std() > 0.01
    mean = ((one / warmth).softmax(-1) + (two / warmth).softmax(-1)) / 2
    torch.testing.assert_close((combined / warmth).softmax(-1), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("combiner", [mean_probs, select])
def test_one_class_has_no_probabilities_to_combine(combiner):
    teachers = [torch.zeros(3, 1), torch.ones(3, 1)]
    with pytest.raises(OutputsError, match="at least two classes"):
        combiner(teachers, **({"labels": torch.zeros(3, dtype=torch.long)} if combiner is select else {}))
