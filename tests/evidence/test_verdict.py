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
    assert f" only {seeds} seed" in found.reason
    assert found.unit_interval[0] > 0
    assert (found.seed_interval, found.half_width, found.limited_by) == (None, None, "seeds")


def test_nan_cannot_tell_and_says_where():
    scores = drawn(1.0)
    scores[2, 7] = math.nan
    found = kdplug.verdict(scored(scores), scored(drawn(0.0, seed=1)))
    assert found.outcome == "CANNOT TELL"
    assert found.reason == "1 score is not finite; the first is that of example 7 of the first side with seed 2"
    assert found.to_data()["difference"] is None


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_score_cannot_tell(value):
    scores = drawn(1.0)
    scores[0, 0] = value
    found = kdplug.verdict(scored(scores), scored(drawn(0.0, seed=1)))
    assert (found.outcome, "not finite" in found.reason) == ("CANNOT TELL", True)


def test_a_test_set_of_one_example_cannot_tell():
    found = kdplug.verdict(scored(drawn(5.0, examples=1)), scored(drawn(0.0, examples=1, seed=1)))
    assert found.outcome == "CANNOT TELL"
    assert found.reason == "the test set has only one independent unit, so the variation over units is unknown"
    assert (found.unit_interval, found.limited_by) == (None, "test size")


def test_a_test_set_of_one_document_cannot_tell():
    a, b = scored(drawn(5.0), unit=["one"] * 200), scored(drawn(0.0, seed=1), unit=["one"] * 200)
    assert kdplug.verdict(a, b).outcome == "CANNOT TELL"


def test_equal_predictions_cannot_tell():
    rows = scored(drawn(1.0))
    assert kdplug.verdict(rows, rows).reason == "both sides are equal on every example"


def test_seeds_that_changed_nothing_cannot_tell_even_after_rounding():
    """The same differences in another order have sums that differ in the last bits, so their spread is not exactly 0."""
    generator = np.random.default_rng(0)
    difference = generator.random(300)
    b = generator.random((4, 300))
    a = b + np.stack([difference, difference[::-1], np.roll(difference, 7), np.roll(difference, 100)])
    found = kdplug.verdict(scored(a), scored(b))
    assert np.ptp((a - b).mean(1)) > 0
    assert (found.outcome, found.reason) == (
        "CANNOT TELL",
        "the difference is the same for every seed, so its variation over seeds is unknown",
    )


def test_the_same_difference_on_every_unit_cannot_tell():
    b = drawn(0.0, seed=1)
    a = b + np.arange(5)[:, None]
    assert "the same for every test unit" in kdplug.verdict(scored(a), scored(b)).reason


def test_an_undefined_correlation_cannot_tell():
    rows = [{"seed": s, "id": i, "label": i, "prediction": 1.0} for s in range(3) for i in range(9)]
    good = [{**row, "prediction": row["id"] + 0.1 * row["seed"] ** 2 * (row["id"] % 2)} for row in rows]
    found = kdplug.verdict(rows, good, aggregate="pearson")
    assert found.reason.startswith(
        "the correlation is undefined: all labels or all predictions are equal (the first side"
    )


def test_examples_of_a_document_are_one_unit():
    """Copies of an example add no information: the interval is that of the documents."""
    a, b = drawn(0.3, examples=30), drawn(0.0, examples=30, seed=1)
    units = list(np.repeat(np.arange(30), 4))
    whole = kdplug.verdict(scored(a), scored(b))
    copied = kdplug.verdict(*(scored(np.repeat(side, 4, axis=1), unit=units) for side in (a, b)))
    assert copied.units == 30
    assert copied.unit_interval == pytest.approx(whole.unit_interval)


def test_a_weighted_mean_weighs_scores_and_resamples_documents():
    generator = np.random.default_rng(3)
    units, weights = np.repeat(np.arange(40), 5), generator.integers(1, 50, 200)
    a, b = drawn(0.3), drawn(0.0, seed=1)
    found = kdplug.verdict(*(scored(side, weight=list(weights), unit=list(units)) for side in (a, b)))
    assert found.difference == pytest.approx(np.average((a - b).mean(0), weights=weights))

    def difference(drawn_units):
        places = np.concatenate([np.flatnonzero(units == unit) for unit in drawn_units])
        return np.average((a - b).mean(0)[places], weights=weights[places])

    theirs = stats.bootstrap(
        (np.arange(40),), difference, vectorized=False, n_resamples=2000, method="percentile", random_state=1
    )
    width = np.diff(theirs.confidence_interval)[0]
    assert np.diff(found.unit_interval)[0] == pytest.approx(width, rel=0.1)
    assert found.unit_interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * width)


def test_weights_that_differ_between_the_sides_are_named():
    a, b = drawn(3.0), drawn(3.4, seed=1)
    rows = [scored(a, weight=[2] * 200), scored(b, weight=[1] * 200)]
    assert kdplug.verdict(*rows, aggregate="exp_mean").reason.endswith(
        "; the two sides weight the examples differently, as for F1 or with two tokenizers, so their averages are over different items"
    )
    assert "weigh" not in kdplug.verdict(rows[0], scored(b, weight=[2] * 200), aggregate="exp_mean").reason


def test_a_perplexity_is_compared_as_its_logarithm():
    a, b = drawn(3.0), drawn(3.4, seed=1)
    found = kdplug.verdict(scored(a), scored(b), aggregate="exp_mean", is_lower_better=True, metric="perplexity")
    assert found.scale == "log perplexity"
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert found.means == pytest.approx((np.exp(a.mean(1)).mean(), np.exp(b.mean(1)).mean()))
    assert found.outcome == "BEATS"


def test_a_root_is_compared_as_its_square():
    a, b = drawn(0.2) ** 2, drawn(0.9, seed=1) ** 2
    found = kdplug.verdict(scored(a), scored(b), aggregate="root_mean", is_lower_better=True, metric="rmse")
    assert (found.scale, found.difference) == ("squared rmse", pytest.approx(b.mean() - a.mean()))
    assert found.means[0] == pytest.approx(np.sqrt(a.mean(1)).mean())


@pytest.mark.parametrize(("aggregate", "theirs"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_a_correlation_is_that_of_scipy_also_in_resamples(aggregate, theirs):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 60).astype(float)
    sides = [np.round(labels + noise * generator.standard_normal((3, 60)), 1) for noise in (0.5, 1.5)]
    rows = [
        [
            {"seed": s, "id": i, "label": labels[i], "prediction": side[s, i], "unit": i // 2}
            for s in range(3)
            for i in range(60)
        ]
        for side in sides
    ]
    found = kdplug.verdict(*rows, aggregate=aggregate)
    expected = [[theirs(labels, values)[0] for values in side] for side in sides]
    assert found.means == pytest.approx(tuple(np.mean(expected, axis=1)))

    def difference(drawn_units):
        places = np.concatenate([[2 * unit, 2 * unit + 1] for unit in drawn_units])
        a, b = ([theirs(labels[places], values[places])[0] for values in side] for side in sides)
        return np.mean(a) - np.mean(b)

    resampled = stats.bootstrap(
        (np.arange(30),), difference, vectorized=False, n_resamples=200, method="percentile", random_state=1
    )
    width = np.diff(resampled.confidence_interval)[0]
    assert found.unit_interval == pytest.approx(tuple(resampled.confidence_interval), abs=0.35 * width)


def test_the_interval_over_both_adds_the_variances_and_counts_the_interaction_once():
    """Drawn effects of seeds, units and their interaction: the estimated variance is near the true one."""
    generator = np.random.default_rng(0)
    widths = []
    for _ in range(200):
        effects = generator.standard_normal((10, 1)) + generator.standard_normal((1, 40)) * 2
        a = effects + 3 * generator.standard_normal((10, 40))
        b = 1e-6 * generator.standard_normal((10, 40))
        low, high = kdplug.verdict(scored(a), scored(b)).interval
        widths.append((high - low) / 2)
    true = 1 / 10 + 4 / 40 + 9 / 400
    assert np.mean(np.square(widths)) / true == pytest.approx(1.96**2, rel=0.25)


def test_a_margin_asks_for_more_seeds_the_smaller_it_is():
    a, b = scored(drawn(0.3)), scored(drawn(0.0, seed=1))
    needed = [kdplug.verdict(a, b, margin=margin).seeds_for_margin for margin in (1.0, 0.3, 0.2)]
    assert needed == sorted(needed)
    assert needed[0] >= 3
    assert kdplug.verdict(a, b, margin=1e-4).seeds_for_margin is None
    assert kdplug.verdict(a, b).seeds_for_margin is None


def test_the_seeds_for_a_margin_do_not_depend_on_the_difference_seen():
    a, b = drawn(0.0), drawn(0.0, seed=1)
    needed = {kdplug.verdict(scored(a + shift), scored(b), margin=0.2).seeds_for_margin for shift in (-1, 0, 0.5)}
    assert len(needed) == 1


def test_the_seeds_for_a_margin_are_those_of_the_textbook_where_the_test_set_is_no_limit():
    """One-sample t test, effect of one standard deviation, two-sided 5 %, power 0.8: 10 (Cohen 1988)."""
    from kdplug.evidence.interval import Variances, seeds_for

    assert seeds_for(1.0, Variances(1 / 5, 1e-12, 0.0), 5, 10_000, 0.95) == 10
    assert seeds_for(0.5, Variances(1 / 5, 1e-12, 0.0), 5, 10_000, 0.95) == 34


def test_a_difference_below_the_margin_is_named():
    small = kdplug.verdict(scored(drawn(0.35)), scored(drawn(0.0, seed=1)), margin=5.0)
    assert small.reason.endswith(("below the margin 5", "as large as the margin 5 is excluded"))


def test_a_verdict_is_the_same_in_every_call():
    weights = list(range(1, 201))
    a, b = scored(drawn(0.3), weight=weights), scored(drawn(0.0, seed=1), weight=weights)
    assert kdplug.verdict(a, b) == kdplug.verdict(a[::-1], b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"aggregate": "men"},
            "aggregate: there is no aggregate 'men'. Did you",
        ),
        ({"margin": 0}, "margin: must be a finite number above 0, got 0"),
        ({"margin": math.nan}, "margin: must be a finite number above 0, got nan"),
        ({"margin": "0.1"}, "margin: must be a finite number above 0, got '0.1'"),
        ({"confidence": 95}, "confidence: must be at least 0.5 and below 1, got 95. Write 0.95"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    with pytest.raises(kdplug.ConfigError) as caught:
        kdplug.verdict(scored(drawn(0.3)), scored(drawn(0.0)), **change)
    assert message in str(caught.value)


ROW = {"seed": 0, "id": 0, "score": 1.0}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([ROW, ROW], [ROW], "a: contains the example 0 of seed 0 twice. Give each run a different seed"),
        ([ROW, {**ROW, "seed": 1}], [ROW], "seeds: the seeds of both sides must be the same; b lacks 1"),
        (
            [ROW, {**ROW, "id": 1}],
            [ROW, {**ROW, "id": 2}],
            "examples: the examples of both sides must be the same; a, seed 0",
        ),
        ([ROW], [], "b: contains no rows"),
        ([{"id": 0}], [ROW], "a, seed 0, score: example 0 has no 'score'"),
        (
            [{**ROW, "label": "cat"}],
            [{**ROW, "label": "dog"}],
            "b, seed 0, label: example 0 has the label 'dog' here and 'cat'",
        ),
        ([{**ROW, "unit": "x"}], [ROW], "b, seed 0, unit: example 0 has a unit on one side only"),
        (
            [{**ROW, "unit": "x"}],
            [{**ROW, "unit": "y"}],
            "b, seed 0, unit: example 0 has the unit 'y' here and 'x' in a",
        ),
        ([{"scroe": 1}], [ROW], "a.0: unknown key 'scroe'. Did you mean 'score'?"),
        ([{**ROW, "score": "0.5"}], [ROW], "a.0.score: must be a number, got the string '0.5'"),
        ([{**ROW, "weight": -1}], [ROW], "a.0.weight: must be a finite number of at least 0, got -1.0"),
        ([{**ROW, "seed": 0.5}], [ROW], "a.0.seed: must be a whole number, got 0.5"),
        ([{**ROW, "id": None}], [ROW], "a.0.id: must be a whole number or a string, got None"),
        ([1.0], [ROW], "a.0: a row must be a mapping, got float"),
        (ROW, [ROW], "a: must be the path of a .jsonl file or a list of rows, got dict"),
    ],
)
def test_unusable_rows_are_named(a, b, message):
    with pytest.raises(kdplug.ConfigError) as caught:
        kdplug.verdict(a, b)
    assert message in str(caught.value)


def test_a_correlation_takes_numbers_and_no_weights():
    rows = [{"id": i, "label": i, "prediction": i * i} for i in range(4)]
    with pytest.raises(kdplug.ConfigError, match="a correlation takes no weights"):
        kdplug.verdict([{**row, "weight": 2} for row in rows], rows, aggregate="pearson")
    with pytest.raises(kdplug.ConfigError, match="a, seed 0, prediction: must be a number, got 'x'"):
        kdplug.verdict([{**row, "prediction": "x"} for row in rows], rows, aggregate="spearman")


def test_numbers_of_numpy_and_torch_are_numbers():
    torch = pytest.importorskip("torch")
    rows = [{"seed": np.int64(s), "score": torch.tensor(float(i % 3 + s % 2 * i))} for s in range(3) for i in range(6)]
    plain = [{"seed": int(row["seed"]), "score": float(row["score"])} for row in rows]
    others = [{**row, "score": (3 * place) % 7} for place, row in enumerate(plain)]
    assert kdplug.verdict(rows, others) == kdplug.verdict(plain, others)


def test_the_lines_name_both_sides_and_are_two_to_five():
    found = kdplug.verdict(scored(drawn(1.0)), scored(drawn(0.0, seed=1)), metric="accuracy", margin=0.1)
    lines = list(found.lines("distilled", "no_teacher"))
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith("distilled BEATS no_teacher: the intervals over seeds, over test units and over both")
    assert "5 seeds, 200 test units" in lines[1]
    assert str(found).startswith("the first BEATS the second")


def test_neither_the_verdict_nor_its_rows_import_torch():
    import subprocess
    import sys

    code = (
        "import sys, kdplug; r = [{'seed': s, 'id': i, 'score': i * s % 5} for s in range(3) for i in range(9)]; "
        "kdplug.verdict(r, [{**x, 'score': 0} for x in r]); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_difference_that_is_not_finite_is_not_printed_as_zero(value):
    a = [{**row, "score": value} if row["id"] == 3 else row for row in scored(drawn(1.0))]
    text = str(kdplug.verdict(a, scored(drawn(0.0, seed=1))))
    assert "difference in score undefined, positive" in text


def test_the_difference_of_perplexities_that_overflow_is_printed():
    a, b = scored(drawn(1001.0)), scored(drawn(1000.0, seed=1))
    found = kdplug.verdict(a, b, aggregate="exp_mean", is_lower_better=True, metric="perplexity")
    assert found.outcome == "LOSES"
    assert f"difference in log perplexity {found.difference:+.3g}, positive" in str(found)


def test_a_difference_of_rounding_errors_is_zero():
    a = drawn(1.0)
    found = kdplug.verdict(scored(a), scored(a[:, ::-1]))
    assert found.difference == 0
    assert "difference in score +0, positive" in str(found)


def test_the_root_of_a_negative_mean_cannot_tell():
    found = kdplug.verdict(scored(drawn(1.0)), scored(drawn(0.0, seed=1)), aggregate="root_mean")
    assert found.outcome == "CANNOT TELL"
    assert found.reason.startswith(
        "the root of the mean is undefined: a score is negative (the first side with seed 0)"
    )


@pytest.mark.parametrize(
    ("one", "other"), [(1, 2.0), (True, 0), (["cat", 1], ["cat", 2.0]), (("cat",), ["dog"]), (["cat"], ["cat", "cat"])]
)
def test_unequal_labels_are_of_different_examples_whatever_their_types(one, other):
    with pytest.raises(kdplug.ConfigError, match="give each example the same id on both sides"):
        kdplug.verdict([{**ROW, "label": one}], [{**ROW, "label": other}])


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), ("1", 1), (None, "cat"), (math.nan, 1.0), (["cat"], ("cat",))])
def test_labels_that_may_be_equal_are_accepted(one, other):
    assert kdplug.verdict([{**ROW, "label": one}], [{**ROW, "label": other}]).outcome == "CANNOT TELL"


def test_a_direction_that_is_no_truth_value_is_refused():
    with pytest.raises(kdplug.ConfigError, match="is_lower_better: must be true or false, got 'no'"):
        kdplug.verdict([ROW], [ROW], is_lower_better="no")
