"""Simulated pairs of methods on finite, heterogeneous test sets, for the law of the verdict.

Each pair draws a test set, and two methods from one population. A method has its effect on each example (on some it is
systematically better), each seed shifts all examples of its run, and each run has its luck on each example. So two
methods have equal means over the population of examples and seeds, while on any finite test set they differ, the same
way in every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdplug.evidence.macro_f1 import ClassCounts
from kdplug.evidence.pairs import Pairs
from kdplug.evidence.verdict import Verdict, judge

Draw = Callable[[np.random.Generator, int, float], Pairs]


@dataclass(frozen=True)
class Setting:
    """A kind of test set; ``shifts`` are the differences between the methods for the table of power."""

    name: str
    draw: Draw
    shifts: tuple[float, ...]


def pairs(first, second, unit_of=None, aggregate="mean"):
    seeds, examples = first.shape[1:]
    units = np.arange(examples) if unit_of is None else unit_of
    return Pairs(tuple(range(seeds)), tuple(range(examples)), units, first, second, aggregate)


def accuracy(examples, by_method, by_seed):
    """Right or wrong: difficulties are Beta(4, 1) drawn, effects are on the scale of log odds."""

    def draw(rng, seeds, shift):
        odds = _log_odds(rng.beta(4, 1, examples)) + by_method * rng.standard_normal((2, 1, examples))
        odds = odds + by_seed * rng.standard_normal((2, seeds, 1)) + np.array([shift, 0.0])[:, None, None]
        scores = (rng.random((2, seeds, examples)) < 1 / (1 + np.exp(-odds))).astype(float)
        return pairs(scores, np.ones_like(scores))

    return draw


def continuous(examples, by_method, by_seed):
    """Skewed scores with heavy tails, whose scale differs between examples."""

    def draw(rng, seeds, shift):
        scale = rng.lognormal(0, 0.7, examples)
        scores = scale * (rng.standard_normal(examples) + by_method * rng.standard_normal((2, 1, examples)))
        scores = scores + by_seed * rng.standard_normal((2, seeds, 1)) + np.array([shift, 0.0])[:, None, None]
        scores = scores + scale * 0.5 * rng.standard_t(4, (2, seeds, examples))
        return pairs(scores, np.ones_like(scores))

    return draw


def documents(count, by_method, by_seed):
    """Losses of passages for the logarithm of a perplexity: passages of a document share its effect, tokens are weights.

    The two methods count tokens differently, as with two tokenizers.
    """

    def draw(rng, seeds, shift):
        sizes = rng.geometric(0.25, count)
        unit_of = np.repeat(np.arange(count), sizes)
        effects = 0.5 * rng.standard_normal(count) + by_method * rng.standard_normal((2, 1, count))
        losses = 3 + effects[..., unit_of] + 0.3 * rng.standard_normal((2, seeds, len(unit_of)))
        losses = losses + by_seed * rng.standard_normal((2, seeds, 1)) + np.array([shift, 0.0])[:, None, None]
        tokens = rng.integers(20, 200, len(unit_of))
        weights = np.stack([tokens, tokens + rng.integers(0, 10, len(unit_of))])[:, None, :]
        return pairs(losses, np.broadcast_to(weights, losses.shape).astype(float), unit_of, "exp_mean")

    return draw


def correlation(examples, by_method, by_seed):
    """Predictions of a number."""

    def draw(rng, seeds, shift):
        labels = rng.standard_normal(examples)
        noise = by_method * rng.standard_normal((2, 1, examples)) + 0.3 * rng.standard_normal((2, seeds, examples))
        scale = np.exp(by_seed * rng.standard_normal((2, seeds, 1)) - np.array([shift, 0.0])[:, None, None])
        return pairs(np.broadcast_to(labels, noise.shape).copy(), labels + scale * noise, None, "pearson")

    return draw


def macro_f1(examples, by_method, by_seed, shares=(0.55, 0.25, 0.12, 0.08)):
    """Classes of unequal sizes: an example is right with its own probability, else one of the other classes."""

    def draw(rng, seeds, shift):
        labels = rng.choice(len(shares), examples, p=shares)
        odds = _log_odds(rng.beta(4, 2, examples)) + by_method * rng.standard_normal((2, 1, examples))
        odds = odds + by_seed * rng.standard_normal((2, seeds, len(shares)))[..., labels]
        odds = odds + np.array([shift, 0.0])[:, None, None]
        is_right = rng.random((2, seeds, examples)) < 1 / (1 + np.exp(-odds))
        other = (labels + rng.integers(1, len(shares), (2, seeds, examples))) % len(shares)
        found = np.where(is_right, labels, other)
        units = np.arange(examples)
        sides = [
            [
                [
                    {"id": place, "label": int(label), "prediction": int(one)}
                    for place, (label, one) in enumerate(zip(labels, row, strict=True))
                ]
                for row in side
            ]
            for side in found
        ]
        first = np.broadcast_to(labels, found.shape).astype(float)
        ids = tuple(range(examples))
        counts = ClassCounts.of(sides, units)
        return Pairs(tuple(range(seeds)), ids, units, first, found.astype(float), "macro_f1", counts)

    return draw


SETTINGS = (
    Setting("accuracy, 100 examples", accuracy(100, 1.5, 0.3), (0.5, 1.0, 2.0)),
    Setting("accuracy, 1,000 examples", accuracy(1000, 1.5, 0.1), (0.25, 0.5, 1.0)),
    Setting("accuracy, 5,000 examples, large effect of seeds", accuracy(5000, 1.0, 0.2), (0.25, 0.5, 1.0)),
    Setting("score with heavy tails, 200 examples", continuous(200, 0.5, 0.05), (0.1, 0.2, 0.4)),
    Setting("log perplexity, 40 documents, unequal weights", documents(40, 0.15, 0.03), (0.05, 0.1, 0.2)),
    Setting("correlation, 150 examples", correlation(150, 0.6, 0.05), (0.1, 0.2, 0.4)),
    Setting("macro F1, 4 unequal classes, 200 examples", macro_f1(200, 1.0, 0.2), (0.5, 1.0, 2.0)),
    Setting("macro F1, 4 unequal classes, 1,000 examples", macro_f1(1000, 1.0, 0.2), (0.25, 0.5, 1.0)),
)


def verdicts(draw: Draw, *, seeds: int, count: int, shift: float = 0.0, start: int = 0) -> list[Verdict]:
    """Return the verdicts on ``count`` pairs of methods."""
    return [
        judge(
            draw(np.random.default_rng([start, number]), seeds, shift),
            is_lower_better=False,
            margin=None,
            confidence=0.95,
        )
        for number in range(count)
    ]


def rates(found: list[Verdict]) -> dict[str, float]:
    """Return the shares of verdicts, and of those by the interval over seeds alone, units alone, and these two."""

    def excludes(interval: tuple[float, float] | None) -> bool:
        return interval is not None and not interval[0] <= 0 <= interval[1]

    seeds = np.array([excludes(verdict.seed_interval) for verdict in found])
    units = np.array([excludes(verdict.unit_interval) for verdict in found])
    decided = np.array([verdict.outcome != "CANNOT TELL" for verdict in found])
    return {
        "verdict": float(decided.mean()),
        "seeds alone": float(seeds.mean()),
        "units alone": float(units.mean()),
        "seeds and units": float((seeds & units).mean()),
    }


def is_at_most(rate: float, count: int, bound: float = 0.05) -> bool:
    """Return whether a share of ``count`` is compatible with a probability of at most ``bound``, within 1 % of chance."""
    return bool(stats.binomtest(round(rate * count), count, bound, alternative="greater").pvalue > 0.01)


def _log_odds(probability):
    return np.log(probability) - np.log1p(-probability)
