"""Tests for the held-out parts of a task's data, and for its predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import torch

from kdplug.contracts.task import Aggregate, Part, Prediction, Predictions, PredictsExamples, Target
from kdplug.engine.hashing import digest
from kdplug.errors import RunError
from kdplug.evidence.macro_f1 import MACRO_F1, macro_f1
from kdplug.evidence.rows import checked_rows
from kdplug.testing.law import broken
from kdplug.testing.sample import seeded
from kdplug.testing.task.case import PARTS, TaskCase, offers

_HELD_OUT: tuple[Part, ...] = ("validation", "test")
_COMPARED, _SEARCHED = 32, 1000
"""Number of examples of a held-out part to search for, and of examples at each end of another part to compare them with."""


class TaskPredictionLaws(TaskCase):
    """Tests that held-out examples are in no other part, and that the metrics follow from the predictions."""

    def test_examples_that_are_held_out_are_in_no_other_part(self) -> None:
        """Catches a validation part that is the test part, or a share of the training data that is trained on as well.

        A few equal examples are allowed: data may hold the same row twice.
        """
        task = self.task()
        for part in _HELD_OUT:
            held = _digests(task.data(part), _COMPARED)
            for other in PARTS:
                if other == part or (other == "validation" and part == "test"):
                    continue
                shared = len(held & _digests(task.data(other), _SEARCHED)) if held else 0
                if 2 * shared > len(held):
                    broken(
                        f"{shared} of the first {len(held)} examples of data({part!r}) are in data({other!r}) too: hold "
                        f"out examples for {part!r} that no other part has"
                    )

    def test_predictions_come_with_the_metrics_of_evaluate(self) -> None:
        """Catches a metric that differs between the table of a run, from predictions, and its curve, from evaluate."""
        task = self.task()
        if (found := self._predictions(task)) is None:
            return
        with seeded(0), torch.no_grad():
            model = task.build_student().eval()
            expected = task.evaluate(model, [self.batch(task, "test")])
        if {*found.metrics} != {*expected} or not all(
            _is_near(found.metrics[name], expected[name]) for name in expected
        ):
            broken(
                f"predict returns the metrics {dict(found.metrics)}, but evaluate {dict(expected)}: let evaluate return "
                "predict(model, batches).metrics"
            )

    def test_there_is_a_prediction_for_each_example_in_order(self) -> None:
        """Catches a row that lacks, and rows in another order than the examples, which compares unlike examples."""
        task = self.task()
        if (found := self._predictions(task)) is None:
            return
        data: Any = task.data("test")
        count = min(self.examples, len(data))
        if len(found.rows) != count:
            broken(
                f"predict returns {len(found.rows)} rows for {count} examples of data('test'): return one row for each, "
                "in order; give a row weight 0 if another row counts for its example"
            )
        for place, row in enumerate(found.rows):
            alone = self._predictions(task, slice(place, place + 1))
            assert alone is not None
            for key in ("label", "input"):
                mine, own = row.get(key), alone.rows[0].get(key)
                if mine is not None and own is not None and not _is_same(mine, own):
                    broken(
                        f"row {place} of predict has the {key} {mine!r}, but example {place} alone has {own!r}: return rows in "
                        "the order of the examples"
                    )

    def test_the_size_of_batches_does_not_change_predictions(self) -> None:
        """Catches padding that enters a score, and a score that is a mean over its batch."""
        task = self.task()
        whole, single = self._predictions(task), self._predictions(task, is_cut=True)
        if whole is None or single is None:
            return
        for place, (one, other) in enumerate(zip(whole.rows, single.rows, strict=True)):
            if not _is_same(one, other):
                broken(
                    f"row {place} of predict is {one} in a batch with other examples, but {other} alone: compute a row from its "
                    "own example, without padding"
                )

    def test_the_metric_follows_from_the_predictions(self) -> None:
        """Catches a score that is not part of the metric, on whose differences a verdict is about something else."""
        task = self.task()
        if (found := self._predictions(task)) is None:
            return
        metric = task.metric
        known: dict[str, tuple[str, ...]] = {"aggregate": get_args(Aggregate), "target": get_args(Target)}
        for name, values in known.items():
            if getattr(found, name) not in values:
                broken(f"predict returns the {name} {getattr(found, name)!r}: write one of {', '.join(values)}")
        value = _aggregated(found)
        if value is not None and not _is_near(value, found.metrics.get(metric, math.nan)):
            broken(
                f"the {found.aggregate} of the predictions is {value:g}, but their {metric!r} is "
                f"{found.metrics.get(metric)}: return the example's part of the metric as score, its share as weight, and "
                "the aggregate that gives the metric"
            )

    def test_predictions_are_plain_data(self) -> None:
        """Catches tensors and numbers that are not finite, which cannot be written to a file, and a misspelt key."""
        task = self.task()
        if (found := self._predictions(task)) is None:
            return
        keys = Prediction.__annotations__
        for place, row in enumerate(found.rows):
            if unknown := [key for key in row if key not in keys]:
                broken(f"row {place} of predict has the key {unknown[0]!r}: use only {', '.join(keys)}")
            if not isinstance(row.get("score"), float):
                broken(f"row {place} of predict has the score {row.get('score')!r}: return a Python float")
            if not row.get("weight", 1.0) >= 0:
                broken(f"row {place} of predict has the weight {row['weight']!r}: return 0 or more")
            if len(row.get("input", "")) > _LONGEST:
                broken(f"the input in row {place} of predict has {len(row['input'])} characters: cut it to {_LONGEST}")
            try:
                plain = json.loads(json.dumps(row, allow_nan=False))
            except (TypeError, ValueError) as error:
                broken(
                    f"row {place} of predict cannot be written as JSON: {error}. Return finite numbers, strings and lists"
                )
            if plain != row:
                broken(f"row {place} of predict is {row}, but {plain} as JSON: return lists, and text as keys")

    def _predictions(self, task: Any, places: slice = slice(None), *, is_cut: bool = False) -> Predictions | None:
        """Return the predictions of a new student for the first test examples, or those at ``places``.

        ``is_cut`` puts each into a separate batch. Return ``None`` for a task without predictions.
        """
        if not offers(task, PredictsExamples):
            return None
        count = min(self.examples, len(task.data("test")))
        cuts = [slice(place, place + 1) for place in range(count)] if is_cut else [places]
        with seeded(0), torch.no_grad():
            model = task.build_student().eval()
        batches = [self.batch(task, "test", places=cut) for cut in cuts]
        with seeded(0), torch.no_grad():
            found: Predictions = task.predict(model, batches)
        return found


_LONGEST = 200


def _digests(data: Any, count: int) -> set[int]:
    """Return the content of the first and last examples that can be hashed."""
    places = {
        *range(min(count, len(data))),
        *(range(max(0, len(data) - count), len(data)) if count > _COMPARED else ()),
    }
    found = set()
    for place in places:
        try:
            found.add(digest(data[place]))
        except RunError:  # an object that cannot be serialized
            continue
    return found


def _aggregated(found: Predictions) -> float | None:
    """Return the metric that follows from the rows; ``None`` if there is nothing to compute it from."""
    rows = found.rows
    if found.aggregate in ("pearson", "spearman"):
        return _correlation(rows, found.aggregate)
    if found.aggregate == MACRO_F1:
        return macro_f1(checked_rows(rows, "rows"))
    weights = [float(row.get("weight", 1.0)) for row in rows]
    if not sum(weights):
        return None
    mean = sum(row["score"] * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)
    if found.aggregate == "exp_mean":
        return math.exp(min(mean, 700.0))
    return math.sqrt(max(mean, 0.0)) if found.aggregate == "root_mean" else mean


def _correlation(rows: Sequence[Prediction], aggregate: Aggregate) -> float | None:
    from scipy.stats import pearsonr, spearmanr

    sides = [[float(row[key]) for row in rows] for key in ("label", "prediction")]
    if any(max(side) - min(side) <= _CONSTANT * max(map(abs, side)) for side in sides):
        return None
    return float((pearsonr if aggregate == "pearson" else spearmanr)(*sides).statistic)


_CONSTANT = 1e-7
_NEAR = 1e-3


def _is_near(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=_NEAR, abs_tol=1e-4)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, floats within rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return _is_near(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)
