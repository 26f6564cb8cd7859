"""The law of the verdict: between methods that do not differ, at most 5 % of verdicts are false."""

from __future__ import annotations

import numpy as np
import pytest
from verdict_scene import accuracy, continuous, documents, is_at_most, macro_f1, pairs, rates, verdicts


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("draw", "count"),
    [
        pytest.param(accuracy(100, 1.5, 0.3), 1000, id="accuracy"),
        pytest.param(continuous(150, 0.5, 0.05), 1000, id="heavy tails"),
        pytest.param(documents(30, 0.15, 0.03), 150, id="weighted documents"),
        pytest.param(macro_f1(150, 1.0, 0.2), 150, id="macro F1"),
    ],
)
def test_false_verdicts_are_at_most_5_percent(draw, count, seeds):
    assert is_at_most(rates(verdicts(draw, seeds=seeds, count=count))["verdict"], count)


def test_an_interval_over_seeds_alone_breaks_the_law():
    found = rates(verdicts(continuous(150, 0.5, 0.05), seeds=5, count=500))
    assert not is_at_most(found["seeds alone"], 500, bound=0.1)


def test_an_interval_over_units_alone_breaks_the_law():
    found = rates(verdicts(accuracy(2000, 1.0, 0.2), seeds=5, count=200))
    assert not is_at_most(found["units alone"], 200, bound=0.25)


def test_the_intervals_over_seeds_and_over_units_break_the_law_without_that_over_both():
    """Seeds and units vary equally here, so each interval lacks half of the variance."""

    def draw(rng, seeds, shift):
        values = rng.standard_normal((1, seeds, 1)) * seeds**0.5 + rng.standard_normal((1, 1, 40)) * 40**0.5
        values = np.concatenate([values + 1e-3 * rng.standard_normal((1, seeds, 40)), np.zeros((1, seeds, 40))])
        return pairs(values, np.ones_like(values))

    found = rates(verdicts(draw, seeds=8, count=1000))
    assert not is_at_most(found["seeds and units"], 1000, bound=0.07)
    assert is_at_most(found["verdict"], 1000)


def test_a_known_difference_is_found():
    """The power at this difference is 100 % in the table of the documentation."""
    found = verdicts(accuracy(1000, 1.5, 0.1), seeds=5, count=100, shift=1.0)
    assert sum(verdict.outcome == "BEATS" for verdict in found) >= 95
    assert not any(verdict.outcome == "LOSES" for verdict in found)
