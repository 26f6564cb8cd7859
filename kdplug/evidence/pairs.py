"""Match the rows of two sides by seed and example, and compute an aggregate over resampled units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kdplug.errors import ConfigError
from kdplug.evidence.macro_f1 import MACRO_F1, ClassCounts, class_ids
from kdplug.evidence.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdplug.contracts.task import Aggregate

    Numbers = NDArray[np.float64]

CORRELATIONS = ("pearson", "spearman")

FROM_LABELS = (*CORRELATIONS, MACRO_F1)
"""The aggregates of labels and predictions, not of scores."""

LARGEST = 1e60
"""Larger numbers count as not finite: the squares of their variances would overflow."""


@dataclass(frozen=True)
class Pairs:
    """Two sides with the same examples for the same seeds.

    ``first`` and ``second`` are arrays ``[sides, seeds, examples]`` of scores and weights; of labels and predictions for
    an aggregate of these. ``unit_of`` is the index of each example's unit. ``classes`` holds the counts for macro F1.
    """

    seeds: tuple[int, ...]
    ids: tuple[str | int, ...]
    unit_of: NDArray[np.intp]
    first: Numbers
    second: Numbers
    aggregate: Aggregate
    classes: ClassCounts | None = None

    @cached_property
    def units(self) -> int:
        """The number of independent units."""
        return int(self.unit_of.max()) + 1

    def problem(self) -> str | None:
        """Return why no aggregate can be computed, or ``None``."""
        usable = (np.abs(self.first) <= LARGEST) & (np.abs(self.second) <= LARGEST)  # false for nan
        if self.classes is not None:
            return "macro F1 is undefined: no label and no prediction has a class" if self.classes.is_empty else None
        if not usable.all():
            side, seed, example = (int(place) for place in np.argwhere(~usable)[0])
            what = "value" if self.aggregate in CORRELATIONS else "score"
            count = int((~usable).sum())
            return (
                f"{count} {what}{'s are' if count > 1 else ' is'} not finite; the first is that of example "
                f"{self.ids[example]!r} of the {('first', 'second')[side]} side with seed {self.seeds[seed]}"
            )
        if self.aggregate in CORRELATIONS:
            flat = (np.ptp(self.first, axis=-1) == 0) | (np.ptp(self.second, axis=-1) == 0)
            why = "the correlation is undefined: all labels or all predictions are equal"
        elif self.aggregate == "root_mean" and (self.first < 0).any():
            flat, why = (self.first < 0).any(-1), "the root of the mean is undefined: a score is negative"
        else:
            flat, why = self.second.sum(-1) == 0, "all weights are 0"
        if flat.any():
            side, seed = (int(place) for place in np.argwhere(flat)[0])
            return f"{why} (the {('first', 'second')[side]} side with seed {self.seeds[seed]})"
        return None

    def caution(self) -> str | None:
        """Return what limits the meaning of the comparison, or ``None``."""
        if self.aggregate in FROM_LABELS or np.array_equal(self.second[0], self.second[1]):
            return None
        return "the two sides weight the examples differently, as for F1 or with two tokenizers, so their averages are over different items"

    def unit_values(self) -> Numbers | None:
        """Return values ``[sides, seeds, units]`` whose mean is the aggregate, or ``None`` if it is not a mean of units."""
        if self.aggregate in FROM_LABELS:
            return None
        weighted, weights = self._unit_sums
        if not np.allclose(weights, weights.flat[0], rtol=1e-12, atol=0.0):
            return None
        return weighted / weights

    def estimates(self, counts: Numbers) -> Numbers:
        """Return the aggregates ``[sides, seeds, resamples]``; ``counts`` ``[resamples, units]`` is how often a unit occurs.

        A perplexity is returned as its logarithm, and the root of a mean as the mean. The aggregate of a resample for
        which it is undefined is nan.
        """
        if self.classes is not None:
            return self.classes.macro_f1(counts)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.aggregate == "spearman":
                return self._rank_correlations(counts[:, self.unit_of])
            if self.aggregate == "pearson":
                return _correlation([sums @ counts.T for sums in self._moments()])
            weighted, weights = self._unit_sums
            found: Numbers = (weighted @ counts.T) / (weights @ counts.T)
            return found

    @cached_property
    def _unit_sums(self) -> tuple[Numbers, Numbers]:
        """The sums of weighted scores and of weights, for each unit."""
        return self._summed(self.first * self.second), self._summed(self.second)

    def _moments(self) -> Iterable[Numbers]:
        x = self.first - self.first.mean(-1, keepdims=True)
        y = self.second - self.second.mean(-1, keepdims=True)
        return [self._summed(values) for values in (np.ones_like(x), x, y, x * x, y * y, x * y)]

    def _summed(self, values: Numbers) -> Numbers:
        """Sum over the examples of each unit."""
        rows = values.reshape(-1, values.shape[-1])
        sums = [np.bincount(self.unit_of, weights=row, minlength=self.units) for row in rows]
        found: Numbers = np.stack(sums).astype(np.float64).reshape(*values.shape[:-1], self.units)
        return found

    def _rank_correlations(self, counts: Numbers) -> Numbers:
        sides, seeds, _ = self.first.shape
        found = np.empty((sides, seeds, len(counts)))
        for side in range(sides):
            for seed in range(seeds):
                x, y = _ranks(self.first[side, seed], counts), _ranks(self.second[side, seed], counts)
                moments = (np.ones_like(x), x, y, x * x, y * y, x * y)
                found[side, seed] = _correlation([np.einsum("re,re->r", counts, values) for values in moments])
        return found


def paired(a: Sequence[Row], b: Sequence[Row], aggregate: Aggregate) -> Pairs:
    """Match the rows of ``a`` and ``b``.

    Raises: ``ConfigError`` if they differ in seeds, examples, units or labels, or if a row lacks a key.
    """
    sides = [_by_seed(a, "a"), _by_seed(b, "b")]
    _check_equal("seeds", sides[0], sides[1], "a", "b")
    seeds = tuple(sorted(sides[0]))
    ids = tuple(sorted(sides[0][seeds[0]], key=_order))  # the result does not depend on the order of rows
    for name, side in zip("ab", sides, strict=True):
        for seed in seeds:
            _check_equal("examples", sides[0][seeds[0]], side[seed], f"a, seed {seeds[0]}", f"{name}, seed {seed}")
    reference = [sides[0][seeds[0]][example] for example in ids]
    columns = [[[side[seed][example] for example in ids] for seed in seeds] for side in sides]
    for name, by_seed in zip("ab", columns, strict=True):
        for seed, rows in zip(seeds, by_seed, strict=True):
            _check_same_data(reference, rows, f"{name}, seed {seed}")
    units: dict[tuple[str, str | int], int] = {}
    names = [("unit", row["unit"]) if "unit" in row else ("id", row["id"]) for row in reference]
    unit_of = np.array([units.setdefault(name, len(units)) for name in names], dtype=np.intp)
    if aggregate == MACRO_F1:
        classes = ClassCounts.of(columns, unit_of)
        return Pairs(seeds, ids, unit_of, *class_ids(columns), aggregate, classes)
    keys = ("label", "prediction") if aggregate in CORRELATIONS else ("score", "weight")
    first, second = (
        np.array(
            [
                [_column(rows, key, f"{name}, seed {seed}") for seed, rows in zip(seeds, by_seed, strict=True)]
                for name, by_seed in zip("ab", columns, strict=True)
            ]
        )
        for key in keys
    )
    if aggregate in CORRELATIONS:
        _check_no_weights(columns)
    return Pairs(seeds, ids, unit_of, first, second, aggregate)


def _by_seed(rows: Sequence[Row], name: str) -> dict[int, dict[str | int, Row]]:
    if not rows:
        raise ConfigError("contains no rows", field=name)
    found: dict[int, dict[str | int, Row]] = {}
    for row in rows:
        examples = found.setdefault(row["seed"], {})
        if row["id"] in examples:
            raise ConfigError(
                f"contains the example {row['id']!r} of seed {row['seed']} twice. Give each run a different seed",
                field=name,
            )
        examples[row["id"]] = row
    return found


def _check_equal(what: str, left: Iterable[Any], right: Iterable[Any], left_name: str, right_name: str) -> None:
    lefts, rights = set(left), set(right)
    if lefts == rights:
        return
    differences = [
        f"{name} lacks {_some(missing)}"
        for name, missing in ((left_name, rights - lefts), (right_name, lefts - rights))
        if missing
    ]
    raise ConfigError(f"the {what} of both sides must be the same; {', '.join(differences)}", field=what)


def _order(value: str | int) -> tuple[bool, str | int]:
    return isinstance(value, str), value


def _some(values: Iterable[Any]) -> str:
    ordered = sorted(values, key=_order)
    shown = ", ".join(repr(value) for value in ordered[:5])
    return shown + (f" and {len(ordered) - 5:,} more" if len(ordered) > 5 else "")


def _column(rows: Sequence[Row], key: str, where: str) -> list[float]:
    return [1.0 if key == "weight" and key not in row else _value(row, key, where) for row in rows]


def _value(row: Row, key: str, where: str) -> float:
    if key not in row:
        raise ConfigError(f"example {row['id']!r} has no {key!r}", field=f"{where}, {key}")
    value = row[key]
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float("nan" if value is None else value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"must be a number, got {value!r} (example {row['id']!r})", field=f"{where}, {key}") from None


def _check_same_data(reference: Sequence[Row], rows: Sequence[Row], where: str) -> None:
    """Check units and labels of equal ids, which differ if the two sides were evaluated on different data."""
    for left, right in zip(reference, rows, strict=True):
        for key in ("unit", "label"):
            one, other = left.get(key), right.get(key)
            if _differ(one, other):
                raise ConfigError(
                    f"example {left['id']!r} has the {key} {other!r} here and {one!r} in a. Evaluate both sides on the "
                    "same examples, and give each example the same id on both sides",
                    field=f"{where}, {key}",
                )
            if key == "unit" and (one is None) != (other is None):
                raise ConfigError(
                    f"example {left['id']!r} has a unit on one side only. Give it on both sides, or on neither",
                    field=f"{where}, {key}",
                )


def _differ(one: object, other: object) -> bool:
    """Return whether two labels are known to be unequal: both are numbers, or texts, or lists of the same length."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) != len(other) or any(map(_differ, one, other))
    is_same_kind = (isinstance(one, str) and isinstance(other, str)) or (_is_number(one) and _is_number(other))
    return is_same_kind and one != other and one == one and other == other  # noqa: PLR0124  nan is unknown


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _check_no_weights(sides: Iterable[Iterable[Iterable[Row]]]) -> None:
    for side in sides:
        for rows in side:
            for row in rows:
                if row.get("weight", 1.0) != 1.0:
                    raise ConfigError("a correlation takes no weights. Remove them from the rows", field="weight")


def _correlation(sums: Sequence[Numbers]) -> Numbers:
    n, x, y, xx, yy, xy = sums
    covariance, x_variance, y_variance = n * xy - x * y, n * xx - x * x, n * yy - y * y
    is_flat = (x_variance <= 1e-12 * n * xx) | (y_variance <= 1e-12 * n * yy)
    found: Numbers = np.where(is_flat, np.nan, covariance / np.sqrt(x_variance * y_variance))
    return found


def _ranks(values: Numbers, counts: Numbers) -> Numbers:
    """Return the mid-ranks of ``values`` ``[examples]`` where each occurs ``counts`` ``[resamples, examples]`` times.

    The ranks are centred at 0, which keeps the sums of their squares accurate.
    """
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(counts[:, order], axis=1)
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    ends = np.append(starts[1:], len(values)) - 1
    last = cumulated[:, ends]
    before = np.concatenate([np.zeros((len(counts), 1)), last[:, :-1]], axis=1)
    middle = (before + last - cumulated[:, -1:]) / 2
    found = np.empty_like(cumulated)
    found[:, order] = np.repeat(middle, np.diff(np.append(starts, len(values))), axis=1)
    return found
