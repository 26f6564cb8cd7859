"""A law that fails because the entry fails for any input advises to fix that first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from testing.specimen import HiddenLaws, KlLaws, laws_of
from torch import Tensor, nn

from kdplug import LossSum
from kdplug.testing import (
    BalancerLaws,
    CodecLaws,
    LayerMapLaws,
    LossLaws,
    ProjectionLaws,
    SchedulerLaws,
    TeacherCombinerLaws,
    broken_laws,
)
from kdplug.testing.law import Laws


class Bank(nn.Module):
    """Keeps the teacher's mean of each class, for fewer classes than the laws draw."""

    def __init__(self, in_dim: int, *, classes: int = 3) -> None:
        """Build an empty bank."""
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, in_dim))

    def forward(self, student_features: Tensor, teacher_features: Tensor, labels: Tensor) -> LossSum:
        """Distance to the mean of the class."""
        error = (student_features.mean(1) - self.means[labels[:, 0]]).square().sum(-1)
        return LossSum(error.sum(), error.numel())


def raises(student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None) -> LossSum:
    """Raise an error."""
    raise RuntimeError("nothing works")


def per_item(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """Return a value for each item."""
    return (student_features - teacher_features.detach()).square().sum(-1)  # type: ignore[return-value]


def viewed(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """View the features as one row."""
    error = (student_features.view(-1) - teacher_features.detach().view(-1)).square()
    return LossSum(error.sum(), error.numel())


class Failing(nn.Linear):
    """A projection whose forward raises."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        """Build the layer."""
        super().__init__(in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Raise an error."""
        raise TypeError("no forward")


def failing_map(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Raise an error."""
    raise TypeError("no pairs")


def failing_weight(progress: float) -> float:
    """Raise an error."""
    raise TypeError("no weight")


def failing_temperature(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Raise an error."""
    raise TypeError("no temperature")


def failing_combiner(teacher_logits_list: tuple[Tensor, ...]) -> Tensor:
    """Raise an error."""
    raise TypeError("no logits")


class FailingBalancer:
    """Raise an error."""

    def update(self, values: Tensor) -> Tensor:
        """Raise an error."""
        raise TypeError("no weights")


class FailingCodec:
    """A codec whose encode raises."""

    uses_temperature = takes_factored = False

    def __init__(self) -> None:
        """Nothing to keep."""

    def shared(self, logits: Tensor) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def encode(self, logits: Tensor, *, temperature: float, seed: int) -> Any:
        """Raise an error."""
        raise TypeError("no parts")

    def decode(self, parts: Any, shared: Any, *, classes: int, temperature: float) -> Tensor:
        """Raise an error."""
        raise TypeError("no logits")


FINITE = "test_it_returns_a_finite_scalar"
FAILING: dict[str, tuple[type[Laws], Any, str, str, str]] = {
    "a loss": (KlLaws, raises, "nothing works", "The loss raises this", FINITE),
    "a class": (HiddenLaws, Bank, "out of bounds", "The loss raises this", FINITE),
    "a result": (HiddenLaws, per_item, "a loss must return a scalar", "The loss fails", FINITE),
    "a map": (LayerMapLaws, failing_map, "no pairs", "The layer map fails", "test_it_returns_pairs_of_whole_numbers"),
    "a weight": (
        SchedulerLaws,
        failing_weight,
        "no weight",
        "The weight scheduler raises this",
        "test_the_weight_is_a_finite_number_throughout",
    ),
    "a temperature": (
        SchedulerLaws,
        failing_temperature,
        "no temperature",
        "The temperature scheduler raises this",
        "test_each_item_gets_a_positive_temperature",
    ),
    "a projection": (
        ProjectionLaws,
        Failing,
        "no forward",
        "The projection raises this",
        "test_it_brings_the_students_width_to_the_teachers",
    ),
    "a combiner": (
        TeacherCombinerLaws,
        failing_combiner,
        "no logits",
        "The teacher combiner raises this",
        "test_it_returns_logits_in_the_shape_of_each_teachers",
    ),
    "a balancer": (
        BalancerLaws,
        FailingBalancer,
        "no weights",
        "The balancer raises this",
        "test_it_returns_a_finite_weight_for_each_term",
    ),
    "a codec": (CodecLaws, FailingCodec, "no parts", "The cache codec", "test_it_gives_back_logits_of_the_items"),
}
"""Entries that fail for any input: the laws, the entry, words of the failure and of the advice, and the law to fix first."""


@pytest.mark.parametrize(("base", "target", "failure", "words", "first"), FAILING.values(), ids=FAILING)
def test_what_fails_for_any_input_gets_the_advice_to_fix_that_first(
    base: type[Laws], target: Any, failure: str, words: str, first: str
) -> None:
    found = broken_laws(laws_of(base, target))
    assert "for any input" not in found.pop(first)
    for name, message in found.items():
        if failure in message:
            assert words in message
            assert message.endswith(f" for any input: fix {first} first")
            own = getattr(base, name).__dict__.get("advice")
            assert own is None or own not in message
    assert sum(failure in message for message in found.values()) > 1


def test_an_error_of_one_law_keeps_its_advice() -> None:
    message = broken_laws(laws_of(HiddenLaws, viewed))["test_it_takes_tensors_that_are_not_contiguous"]
    assert message.endswith("Use reshape or flatten instead of view")


def test_a_missing_setting_is_fixed_first() -> None:
    class Needs(nn.Module):
        """Needs a setting."""

        def __init__(self, *, classes: int) -> None:
            super().__init__()

        def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
            return (student_features - teacher_features).square().mean()

    found = broken_laws(laws_of(LossLaws, Needs))
    assert found["test_its_inputs_are_not_modified"].endswith("for any input: fix test_it_can_be_built first")
