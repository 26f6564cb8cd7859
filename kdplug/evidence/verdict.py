"""Compare two sets of predictions and return the verdict on them: BEATS, LOSES or CANNOT TELL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal, get_args

from kdplug.contracts.task import Aggregate
from kdplug.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from kdplug.evidence.interval import UnitSpread
    from kdplug.evidence.pairs import Pairs

Outcome = Literal["BEATS", "LOSES", "CANNOT TELL"]

FEWEST_SEEDS = 3

_ROUNDING = 1e-10
"""Differences that are smaller than this share of the values count as rounding errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a comparison of two methods on the same test examples and seeds.

    ``difference`` is positive if the first method is better. ``scale`` is what the difference is computed on: the
    metric, the logarithm of a perplexity, or the square of a root mean. ``seed_interval`` includes the uncertainty from
    training (seeds), ``unit_interval`` that from the test set (its independent units), and ``interval`` both. The
    outcome is ``"BEATS"`` or ``"LOSES"`` only if all three exclude 0. ``half_width`` is that of the widest interval.
    ``limited_by`` is ``"seeds"`` if more seeds would narrow it, and ``"test size"`` if a larger test set would.
    ``seeds_for_margin`` is the estimated number of seeds at which a true difference of ``margin`` leads to a verdict in
    80 % of comparisons. ``means`` are the metric's values for both methods, averaged over seeds.
    """

    outcome: Outcome
    reason: str
    difference: float
    scale: str
    seed_interval: tuple[float, float] | None = None
    unit_interval: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    half_width: float | None = None
    limited_by: Literal["seeds", "test size"] | None = None
    margin: float | None = None
    seeds_for_margin: int | None = None
    confidence: float = 0.95
    seeds: int
    units: int
    means: tuple[float, float]

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON; a number that is not finite is ``None``."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def lines(self, first: str = "the first", second: str = "the second") -> Iterator[str]:
        """Yield the lines to print; ``first`` and ``second`` are the names of the two methods."""
        verb = {"BEATS": f"{first} BEATS {second}", "LOSES": f"{first} LOSES to {second}"}
        yield f"{verb.get(self.outcome, f'CANNOT TELL {first} from {second}')}: {self.reason}."
        over = f"{_count(self.seeds, 'seed')}, {_count(self.units, 'test unit')}"
        seen = f"{first} {_figure(self.means[0])}, {second} {_figure(self.means[1])} ({over})"
        difference = f"{self.difference:+.3g}" if math.isfinite(self.difference) else "undefined"
        yield f"{seen}; difference in {self.scale} {difference}, positive where {first} is better."
        intervals = {"seeds": self.seed_interval, "test units": self.unit_interval, "both": self.interval}
        shown = [f"over {name} [{low:+.3g}, {high:+.3g}]" for name, (low, high) in _known(intervals)]
        if shown:
            yield f"{100 * self.confidence:g} % intervals of the difference: {', '.join(shown)}."
        if self.half_width is not None:
            more = "more seeds" if self.limited_by == "seeds" else "a larger test set"
            yield f"Half-width {self.half_width:.3g}, limited by {self.limited_by}: {more} would narrow it."
        if self.margin is not None:
            yield self._margin_line()

    def gain_lines(self, name: str, first: str, second: str) -> Iterator[str]:
        """Yield the lines of a comparison that is not a verdict: the difference, called ``name``, and its intervals."""
        outcome = {"BEATS": "above 0", "LOSES": "below 0"}.get(self.outcome, "may be 0")
        _, seen, *rest = self.lines(first, second)
        yield f"{name.capitalize()}: {outcome}: {self.reason}."
        yield from (seen, *rest)

    def _margin_line(self) -> str:
        from kdplug.evidence.interval import MOST_SEEDS

        start = f"A true difference of {self.margin:g} (the margin)"
        if self.seeds_for_margin is not None:
            return (
                f"{start} would need about {self.seeds_for_margin} seeds to lead to a verdict in 80 % of comparisons."
            )
        if self.half_width is None or not self.half_width:
            return f"The number of seeds for a margin of {self.margin:g} cannot be estimated from this comparison."
        return f"{start} would lead to a verdict in fewer than 80 % of comparisons on this test set, even with {MOST_SEEDS:,} seeds."

    def __str__(self) -> str:
        return "\n".join(self.lines())


def verdict(
    a: str | Path | Iterable[Mapping[str, Any]],
    b: str | Path | Iterable[Mapping[str, Any]],
    *,
    is_lower_better: bool = False,
    aggregate: Aggregate = "mean",
    margin: float | None = None,
    confidence: float = 0.95,
    metric: str = "score",
) -> Verdict:
    """Compare two methods by their scores for the same test examples and the same seeds.

    ``a`` and ``b`` are paths of ``.jsonl`` files, or lists of rows. A row is a mapping with the ``score`` of an
    example, its ``id`` (default: its position), the ``seed`` of the run (default 0), and optionally its ``weight`` and
    the ``unit`` that it belongs to, such as a document. ``aggregate`` specifies how the metric is computed from the rows:
    ``mean``, ``exp_mean`` (perplexity, from losses), ``root_mean`` (from squared errors), ``pearson`` or
    ``spearman``, the correlation of ``label`` and ``prediction``, or ``macro_f1``, F1 averaged over the classes that
    occur as one of them. ``margin`` is the smallest difference that matters; for ``exp_mean`` it is a difference of
    logarithms, and for ``root_mean`` of squares. ``metric`` is the metric's name in messages.

    The outcome is ``"CANNOT TELL"``, with the reason, if there are fewer than 3 seeds, scores that are not finite, or
    only one unit; these are not errors.

    Raises: ``ConfigError`` if a file or a row is invalid, or if the two sides differ in seeds or examples.
    """
    from kdplug.evidence.pairs import paired
    from kdplug.evidence.rows import checked_rows, read_rows

    _check_arguments(aggregate, margin, confidence)
    if not isinstance(is_lower_better, bool):
        raise ConfigError(f"must be true or false, got {is_lower_better!r}", field="is_lower_better")
    rows = [
        read_rows(side) if isinstance(side, (str, Path)) else checked_rows(side, name)
        for name, side in (("a", a), ("b", b))
    ]
    return judge(
        paired(rows[0], rows[1], aggregate),
        is_lower_better=is_lower_better,
        margin=margin,
        confidence=confidence,
        metric=metric,
    )


def judge(
    pairs: Pairs, *, is_lower_better: bool, margin: float | None, confidence: float, metric: str = "score"
) -> Verdict:
    """Return the verdict on two sides whose rows are matched."""
    import numpy as np

    scale = {"exp_mean": f"log {metric}", "root_mean": f"squared {metric}"}.get(pairs.aggregate, metric)
    sign = -1.0 if is_lower_better else 1.0
    estimates = pairs.estimates(np.ones((1, pairs.units)))[..., 0]
    by_seed = sign * (estimates[0] - estimates[1])
    difference, size = float(by_seed.mean()), float(abs(estimates).max())
    known: dict[str, Any] = {
        "difference": 0.0 if math.isfinite(size) and abs(difference) <= _ROUNDING * size else difference,
        "scale": scale,
        "margin": margin,
        "confidence": confidence,
        "seeds": len(pairs.seeds),
        "units": pairs.units,
        "means": _means(pairs, estimates),
    }
    problem = pairs.problem()
    if problem is not None:
        return Verdict(outcome="CANNOT TELL", reason=problem, **known)
    return _weighed(pairs, by_seed, sign, known)


def aggregated(rows: Iterable[Mapping[str, Any]], aggregate: Aggregate) -> float:
    """Return the metric that follows from the rows, averaged over seeds; ``nan`` if it is undefined.

    Raises: ``ConfigError`` if a row is invalid.
    """
    import numpy as np

    from kdplug.evidence.pairs import paired
    from kdplug.evidence.rows import checked_rows

    side = checked_rows(rows, "rows")
    pairs = paired(side, side, aggregate)
    if pairs.problem() is not None:
        return math.nan
    return _means(pairs, pairs.estimates(np.ones((1, pairs.units)))[..., 0])[0]


def verdict_on_values(
    a: Mapping[int, float],
    b: Mapping[int, float],
    *,
    why: str,
    is_lower_better: bool,
    margin: float | None,
    metric: str,
) -> Verdict:
    """Compare the values of a metric by seed, without predictions: CANNOT TELL, with the interval over seeds if there is one.

    ``why`` is the reason why there are no scores of examples. ``a`` and ``b`` have the same seeds.
    """
    from kdplug.evidence.interval import t_interval

    sign, seeds = -1.0 if is_lower_better else 1.0, len(a)
    differences = [sign * (a[seed] - b[seed]) for seed in a]
    difference = fmean(differences)
    interval = None
    if seeds >= FEWEST_SEEDS and math.isfinite(difference) and (spread := stdev(differences)):
        interval = t_interval(difference, spread**2 / seeds, seeds - 1, 0.95)
    unknown = ", so the interval over test units is unknown" if interval is not None else ""
    return Verdict(
        outcome="CANNOT TELL",
        reason=f"{why}{unknown}",
        difference=difference,
        scale=metric,
        seed_interval=interval,
        margin=margin,
        seeds=seeds,
        units=0,
        means=(fmean(a.values()), fmean(b.values())),
    )


def _weighed(pairs: Pairs, by_seed: Any, sign: float, known: dict[str, Any]) -> Verdict:
    from kdplug.evidence.interval import Variances, freedom, seeds_for, t_interval, unit_spread
    from kdplug.evidence.pairs import FROM_LABELS

    difference, confidence, margin = known["difference"], known["confidence"], known["margin"]
    seeds, units = len(pairs.seeds), pairs.units
    rounding = _ROUNDING * (1.0 if pairs.aggregate in FROM_LABELS else float(abs(pairs.first).max()))
    spread = unit_spread(pairs, sign, confidence) if units > 1 else None
    if spread is not None and all(math.isfinite(bound) for bound in spread.interval):
        known["unit_interval"] = spread.interval
    of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds >= FEWEST_SEEDS else None
    if of_seeds is not None:
        known["seed_interval"] = t_interval(difference, of_seeds, seeds - 1, confidence)

    problem = _weakness(pairs, by_seed, spread, rounding)
    if problem is not None:
        known["limited_by"] = "test size" if units == 1 else "seeds" if seeds < FEWEST_SEEDS else None
        return Verdict(outcome="CANNOT TELL", reason=problem, **known)
    assert spread is not None
    assert of_seeds is not None
    interaction = max((spread.one_seed - spread.variance) / (seeds - 1), 0.0)
    variances = Variances(of_seeds, spread.variance, interaction)
    known["interval"] = t_interval(difference, variances.both, freedom(variances, seeds, units), confidence)
    widths = {name: (high - low) / 2 for name, (low, high) in _known(_intervals(known))}
    known["half_width"] = max(widths.values())
    known["limited_by"] = "seeds" if widths["seeds"] >= widths["test units"] else "test size"
    if margin is not None:
        known["seeds_for_margin"] = seeds_for(margin, variances, seeds, units, confidence)
    outcome, reason = _decision(known)
    reason = "; ".join(filter(None, [reason, pairs.caution()]))
    return Verdict(outcome=outcome, reason=reason, **known)


def _intervals(known: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    return {"seeds": known["seed_interval"], "test units": known["unit_interval"], "both": known["interval"]}


def _decision(known: Mapping[str, Any]) -> tuple[Outcome, str]:
    intervals = dict(_known(_intervals(known)))
    difference, margin = known["difference"], known["margin"]
    holding_zero = [name for name, (low, high) in intervals.items() if not (low > 0 or high < 0)]
    if holding_zero:
        names = [f"over {name}" for name in holding_zero]
        listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        reason = f"the interval{'s' * (len(holding_zero) > 1)} {listed} include{'s' * (len(holding_zero) == 1)} 0"
        if margin is not None and all(-margin < low and high < margin for low, high in intervals.values()):
            reason += f"; a difference as large as the margin {margin:g} is excluded"
        return "CANNOT TELL", reason
    reason = "the intervals over seeds, over test units and over both exclude 0"
    if margin is not None and all(-margin < low and high < margin for low, high in intervals.values()):
        reason += f", but the difference is below the margin {margin:g}"
    return ("BEATS" if difference > 0 else "LOSES"), reason


def _weakness(pairs: Pairs, by_seed: Any, spread: UnitSpread | None, rounding: float) -> str | None:
    """Return why the data are too weak for a verdict, or ``None``."""
    seeds = _count(len(pairs.seeds), "seed")
    is_equal = (pairs.first[0] == pairs.first[1]).all() and (pairs.second[0] == pairs.second[1]).all()
    found = None
    if spread is None:
        found = "the test set has only one independent unit, so the variation over units is unknown"
    elif is_equal:
        found = "both sides are equal on every example"
    elif len(pairs.seeds) < FEWEST_SEEDS:
        found = f"there {'is' if len(pairs.seeds) == 1 else 'are'} only {seeds}, and a verdict needs {FEWEST_SEEDS} or more, because training varies from seed to seed"
    elif not all(math.isfinite(bound) for bound in spread.interval):
        found = "the interval over test units is undefined, because the metric is undefined for some resamples of the test set"
    elif float(by_seed.max() - by_seed.min()) <= rounding:
        found = "the difference is the same for every seed, so its variation over seeds is unknown"
    elif spread.variance**0.5 <= rounding:
        found = "the difference is the same for every test unit, so its variation over units is unknown"
    return found


def _means(pairs: Pairs, estimates: Any) -> tuple[float, float]:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if pairs.aggregate == "exp_mean":
            estimates = np.exp(estimates)
        elif pairs.aggregate == "root_mean":
            estimates = np.sqrt(estimates)
    return float(estimates[0].mean()), float(estimates[1].mean())


def _check_arguments(aggregate: str, margin: float | None, confidence: float) -> None:
    known = get_args(Aggregate)
    if aggregate not in known:
        listed = ", ".join(known)
        raise ConfigError(
            f"there is no aggregate {aggregate!r}.{did_you_mean(str(aggregate), known)} The aggregates are {listed}",
            field="aggregate",
        )
    if margin is not None and not (_is_number(margin) and margin > 0):
        raise ConfigError(f"must be a finite number above 0, got {margin!r}", field="margin")
    if not (_is_number(confidence) and 0.5 <= confidence < 1):
        hint = f". Write {confidence / 100:g}" if _is_number(confidence) and 50 <= confidence < 100 else ""
        raise ConfigError(f"must be at least 0.5 and below 1, got {confidence!r}{hint}", field="confidence")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _known(
    intervals: Mapping[str, tuple[float, float] | None],
) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, interval in intervals.items():
        if interval is not None:
            yield name, interval


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
