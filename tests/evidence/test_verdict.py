"""The verdict on two sets of predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import kdplug


def scored(scores, **columns):
    """Rows of scores [seeds, examples]; a column is a list for the examples."""
    return [
        {"seed": seed, "id": example, "score": float(score), **{key: value[example] for key, value in columns.items()}}
        for seed, row in enumerate(scores)
        for example, score in enumerate(row)
    ]


def drawn(mean, seeds=5, examples=200, seed=0):
    generator = np.random.default_rng(seed)
    return mean + 0.05 * generator.standard_normal((seeds, 1)) + generator.standard_normal((seeds, examples))


def test_a_large_difference_beats_and_in_the_other_order_loses():
    better, worse = scored(drawn(2.0)), scored(drawn(0.0, seed=1))
    assert kdplug.verdict(better, worse).outcome == "BEATS"
    assert kdplug.verdict(worse, better).outcome == "LOSES"
    assert kdplug.verdict(worse, better, is_lower_better=True).outcome == "BEATS"


def test_the_intervals_of_a_plain_mean_are_those_of_scipy():
    a, b = drawn(0.3), drawn(0.0, seed=1)
    found = kdplug.verdict(scored(a), scored(b))
    over_seeds = stats.ttest_rel(a.mean(1), b.mean(1)).confidence_interval(0.95)
    over_units = stats.ttest_1samp((a - b).mean(0), 0).confidence_interval(0.95)
    assert found.seed_interval == pytest.approx(tuple(over_seeds))
    assert found.unit_interval == pytest.approx(tuple(over_units))
    assert found.difference == pytest.approx((a - b).mean())
    assert found.means == pytest.approx((a.mean(), b.mean()))


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_cannot_tell_and_show_the_interval_over_units(seeds):
    found = kdplug.verdict(scored(drawn(5.0, seeds)), scored(drawn(0.0, seeds, seed=1)))
    assert found.outcome == "CANNOT TELL"
    assert found.reason.startswith(f"{seeds} seed")
    assert found.unit_interval[0] > 0
    assert (found.seed_interval, found.half_width, found.limited_by) == (None, None, "seeds")


def test_nan_cannot_tell_and_says_where():
    scores = drawn(1.0)
    scores[2, 7] = math.nan
    found = kdplug.verdict(scored(scores), scored(drawn(0.0, seed=1)))
    assert found.outcome == "CANNOT TELL"
    assert found.reason == "1 score is not finite; the first is that of example 7 of the first side with seed 2"
    assert found.to_data()["difference"] is None
