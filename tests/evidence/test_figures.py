"""Figures over rows, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdplug.errors import ConfigError
from kdplug.evidence.figures import agreement, calibration, confusion, disagreements, gap_closed, per_class

metrics = pytest.importorskip("sklearn.metrics")

CLASSES = ["ant", "bee", "cat", "dog"]


def drawn(seed=0, count=200, classes=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    predictions = np.where(generator.random(count) < 0.7, labels, generator.integers(0, classes, count))
    return labels, predictions, generator.uniform(0.34, 1, count)


def rows_of(labels, predictions, probability=None, seed=0):
    names = [
        {"label": CLASSES[label], "prediction": CLASSES[other]}
        for label, other in zip(labels, predictions, strict=True)
    ]
    chances = [{}] * len(names) if probability is None else [{"probability": float(chance)} for chance in probability]
    return [
        {"seed": seed, "id": place, **name, **chance}
        for place, (name, chance) in enumerate(zip(names, chances, strict=True))
    ]


def test_figures_per_class_are_those_of_scikit_learn():
    labels, predictions, _ = drawn()
    found = per_class(rows_of(labels, predictions), "class")
    expected = metrics.precision_recall_fscore_support(labels, predictions)
    assert found["classes"] == ["ant", "bee", "cat"]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert found[name] == pytest.approx(list(values))


def test_figures_per_class_are_means_over_seeds():
    labels, predictions, _ = drawn()
    other = drawn(1)[1]
    both = per_class(rows_of(labels, predictions) + rows_of(labels, other, seed=1), "class")
    single = [per_class(rows_of(labels, values), "class") for values in (predictions, other)]
    assert both["f1"] == pytest.approx(np.mean([figures["f1"] for figures in single], axis=0))
    assert both["support"] == single[0]["support"]


def test_a_class_that_is_absent_or_never_predicted_has_no_recall_or_precision():
    found = per_class(rows_of([0, 0, 1], [0, 2, 0]), "class")
    assert found["classes"] == ["ant", "bee", "cat"]
    assert found["precision"] == [0.5, None, 0.0]
    assert found["recall"] == [0.5, 0.0, None]
    assert found["support"] == [2, 1, 0]


def test_one_class_alone_has_figures():
    rows = rows_of([1, 1], [1, 1])
    assert per_class(rows, "class")["f1"] == [1.0]
    assert confusion(rows, "class") == {"classes": ["bee"], "counts": [[2]]}


def test_confusion_counts_true_classes_in_rows_and_sums_over_seeds():
    labels, predictions, _ = drawn()
    rows = rows_of(labels, predictions) + rows_of(labels, predictions, seed=1)
    expected = 2 * metrics.confusion_matrix(labels, predictions)
    assert confusion(rows, "class") == {"classes": ["ant", "bee", "cat"], "counts": expected.tolist()}


def test_tags_count_one_by_one():
    row = {"id": 0, "label": ["N", "V", "N"], "prediction": ["N", "N", "N"], "probability": [0.9, 0.6, 0.8]}
    assert confusion([row], "tags")["counts"] == [[2, 0], [1, 0]]
    assert per_class([row], "tags")["support"] == [2, 1]
    assert sum(found["count"] for found in calibration([row], "tags")["bins"]) == 3


def test_several_classes_of_an_example_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    flags = generator.random((2, 100, 4)) < 0.4
    lists = [[[name for name, flag in zip(CLASSES, row, strict=True) if flag] for row in side] for side in flags]
    rows = [
        {"id": place, "label": label, "prediction": other}
        for place, (label, other) in enumerate(zip(*lists, strict=True))
    ]
    expected = metrics.precision_recall_fscore_support(flags[0], flags[1])
    found = per_class(rows, "classes")
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert found[name] == pytest.approx(list(values))
    assert confusion(rows, "classes") is None


def test_the_calibration_error_is_that_of_its_bins():
    labels, predictions, probability = drawn(count=1000)
    found = calibration(rows_of(labels, predictions, probability), "class")
    bins = found["bins"]
    assert sum(part["count"] for part in bins) == 1000
    by_hand = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in bins) / 1000
    assert found["error"] == pytest.approx(by_hand, abs=1e-6)
    right = labels == predictions
    first = probability < 0.4
    assert (bins[0]["count"], bins[0]["accuracy"]) == (first.sum(), pytest.approx(right[first].mean()))


def test_the_calibration_error_is_that_of_its_bins_at_their_edges_too():
    edges = [place / 15 for place in range(16)] + [place / 10 for place in range(11)]
    probability = edges * 4
    labels = np.random.default_rng(0).integers(0, 2, len(probability))
    found = calibration(rows_of(labels, np.zeros_like(labels), probability), "class")
    by_hand = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in found["bins"])
    assert found["error"] == pytest.approx(by_hand / len(probability), abs=1e-6)


def test_certain_and_right_is_calibrated():
    found = calibration(rows_of([0, 1], [0, 1], [1.0, 1.0]), "class")
    assert found["error"] == pytest.approx(0.0, abs=1e-6)
    assert found["bins"] == [{"confidence": 1.0, "accuracy": 1.0, "count": 2}]


def test_agreement_is_counted_where_the_teacher_is_right_and_where_it_is_wrong():
    teacher = rows_of([0, 0, 1, 1], [0, 0, 0, 2])
    student = rows_of([0, 0, 1, 1], [0, 1, 0, 1]) + rows_of([0, 0, 1, 1], [0, 0, 0, 1], seed=1)
    assert agreement(student, teacher) == {"teacher_right": 0.75, "teacher_wrong": 0.5}
    assert disagreements(student, teacher) == [(0, 1), (0, 3), (1, 3)]
    assert agreement(teacher[:2], teacher) == {"teacher_right": 1.0, "teacher_wrong": None}


def test_agreement_on_tags_counts_tags_and_on_several_classes_sets():
    teacher = [{"id": 0, "label": ["N", "V"], "prediction": ["N", "N"]}]
    student = [{"id": 0, "label": ["N", "V"], "prediction": ["N", "V"]}]
    assert agreement(student, teacher, "tags") == {"teacher_right": 1.0, "teacher_wrong": 0.0}
    assert agreement(student, teacher, "classes") == {"teacher_right": None, "teacher_wrong": 0.0}
    swapped = [{**student[0], "prediction": ["V", "N"]}]
    assert disagreements(swapped, student, "classes") == []


@pytest.mark.parametrize("figure", [per_class, confusion, calibration])
@pytest.mark.parametrize("target", ["number", "text", "tokens"])
def test_other_targets_have_no_figures(figure, target):
    assert figure([{"id": 0, "label": 1.5, "prediction": 2.5, "score": 1}], target) is None
    assert agreement([{"id": 0}], [{"id": 0}], target) is None


def test_rows_without_labels_or_probabilities_have_no_figures():
    assert per_class([{"id": 0, "score": 1.0}], "class") is None
    assert confusion([{"id": 0, "score": 1.0, "label": None, "prediction": "a"}], "class") is None
    assert calibration(rows_of([0], [0]), "class") is None
    assert agreement([{"id": 0, "score": 1}], [{"id": 0, "score": 1}]) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: per_class([{"id": 4, "label": 0.5, "prediction": "a"}], "class"),
            "a class must be a string or a whole number",
        ),
        (
            lambda: confusion([{"id": 4, "label": ["N"], "prediction": []}], "tags"),
            "prediction: must have as many entries as label, 1, got 0",
        ),
        (
            lambda: confusion([{"id": 4, "label": "N", "prediction": ["N"]}], "tags"),
            "label: must be a list for the target 'tags', got 'N'",
        ),
        (
            lambda: calibration(rows_of([0], [0], [1.5]), "class"),
            "must be a number between 0 and 1, got 1.5 (example 0)",
        ),
        (lambda: calibration(rows_of([0], [0], [math.nan]), "class"), "must be a number between 0 and 1, got nan"),
        (lambda: agreement(rows_of([0, 1], [0, 1]), rows_of([0], [0])), "teacher: lacks the example 1"),
        (
            lambda: agreement(rows_of([0], [0]), rows_of([0], [0]) * 2),
            "teacher: lacks|teacher: contains the example 0 twice",
        ),
    ],
)
def test_unusable_rows_are_named(call, message):
    with pytest.raises(ConfigError) as caught:
        call()
    assert any(part in str(caught.value) for part in message.split("|"))


@pytest.mark.parametrize(
    ("distilled", "no_teacher", "teacher", "is_lower_better", "share"),
    [
        (0.9, 0.8, 1.0, False, 0.5),
        (51.0, 60.0, 42.0, True, 0.5),
        (0.7, 0.8, 1.0, False, -0.5),
        (0.9, 0.8, 0.8, False, None),
        (0.9, 0.8, 0.7, False, None),
        (62.9, 51.1, 98.0, True, None),
        (math.nan, 0.8, 1.0, False, None),
        (0.9, 0.8, math.inf, False, None),
    ],
)
def test_the_gap_closed_is_blank_where_the_teacher_is_not_ahead(distilled, no_teacher, teacher, is_lower_better, share):
    found = gap_closed(distilled, no_teacher, teacher, is_lower_better)
    assert found == (None if share is None else pytest.approx(share))
