"""Macro F1 from labels and predictions, and the verdict on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

import kdplug
from kdplug.errors import ConfigError
from kdplug.evidence.macro_f1 import ClassCounts, macro_f1
from kdplug.evidence.pairs import paired
from kdplug.evidence.rows import checked_rows

RNG = np.random.default_rng(0)


def rows(labels, predictions, seed=0):
    return [
        {"seed": seed, "id": place, "score": 0.0, "label": label, "prediction": prediction}
        for place, (label, prediction) in enumerate(zip(labels, predictions, strict=True))
    ]


@pytest.mark.parametrize("names", [[0, 1, 2], ["a", "b", "c"]])
def test_it_is_that_of_scikit_learn(names):
    labels, found = (RNG.choice(names, 50).tolist() for _ in range(2))
    assert macro_f1(rows(labels, found)) == pytest.approx(f1_score(labels, found, average="macro", zero_division=0))


def test_a_class_that_is_only_predicted_counts_as_0():
    assert macro_f1(rows([0, 0], [0, 1])) == pytest.approx(f1_score([0, 0], [0, 1], average="macro", zero_division=0))


def test_examples_may_have_several_classes():
    labels, found = ([RNG.choice(4, RNG.integers(0, 4), replace=False).tolist() for _ in range(40)] for _ in range(2))
    binary = MultiLabelBinarizer(classes=range(4))
    expected = f1_score(binary.fit_transform(labels), binary.transform(found), average="macro", zero_division=0)
    assert macro_f1(rows(labels, found)) == pytest.approx(expected)


def test_resamples_are_those_of_repeated_rows():
    labels, found = RNG.integers(0, 3, 30), RNG.integers(0, 3, 30)
    counts = RNG.integers(0, 3, (5, 10)).astype(float)
    unit_of = np.arange(30) // 3
    estimates = ClassCounts.of([[rows(labels, found)]], unit_of).macro_f1(counts)[0, 0]
    for drawn, value in zip(counts, estimates, strict=True):
        repeated = np.repeat(np.arange(30), drawn[unit_of].astype(int))
        assert value == pytest.approx(f1_score(labels[repeated], found[repeated], average="macro", zero_division=0))


def sides(better, seeds=3, count=300):
    labels = RNG.integers(0, 3, count)
    found = []
    for share in (better, 0.6):
        predictions = [np.where(RNG.random(count) < share, labels, (labels + 1) % 3).tolist() for _ in range(seeds)]
        found.append([row for seed, one in enumerate(predictions) for row in rows(labels.tolist(), one, seed)])
    return found


def test_a_large_difference_is_a_verdict_and_the_means_are_the_metric():
    found = kdplug.verdict(*sides(0.9), aggregate="macro_f1", metric="macro_f1", margin=0.1)
    assert found.outcome == "BEATS"
    assert found.scale == "macro_f1"
    assert found.means[0] == pytest.approx(0.9, abs=0.03)
    assert found.difference == pytest.approx(found.means[0] - found.means[1])
    assert found.unit_interval[0] < found.difference < found.unit_interval[1]
    assert found.seeds_for_margin is not None


def test_equal_sides_cannot_be_told_apart():
    one, _ = sides(0.9)
    found = kdplug.verdict(one, one, aggregate="macro_f1")
    assert (found.outcome, found.difference) == ("CANNOT TELL", 0.0)
    assert "equal on every example" in found.reason


def test_the_weights_of_scores_have_no_effect():
    one, other = sides(0.9)
    weighted = [[{**row, "weight": float(row["id"] % 3)} for row in side] for side in (one, other)]
    assert kdplug.verdict(*weighted, aggregate="macro_f1") == kdplug.verdict(one, other, aggregate="macro_f1")


def test_a_row_without_prediction_is_named():
    one, other = sides(0.9)
    del other[4]["prediction"]
    with pytest.raises(ConfigError, match="example 4 has no 'prediction', which macro F1 is computed from"):
        kdplug.verdict(one, other, aggregate="macro_f1")


def test_rows_without_any_class_have_no_verdict():
    empty = [row for seed in range(3) for row in rows([[]] * 5, [[]] * 5, seed)]
    found = kdplug.verdict(empty, empty, aggregate="macro_f1")
    assert found.outcome == "CANNOT TELL"
    assert "macro F1 is undefined" in found.reason
    assert math.isnan(found.difference)


def test_units_are_resampled_whole():
    one, other = ([{**row, "unit": row["id"] // 10} for row in side] for side in sides(0.9))
    pairs = paired(checked_rows(one, "a"), checked_rows(other, "b"), "macro_f1")
    assert pairs.units == 30
    assert kdplug.verdict(one, other, aggregate="macro_f1").units == 30
