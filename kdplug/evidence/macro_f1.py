"""Macro F1 over resampled units, from the label and the prediction of each example."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdplug.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdplug.evidence.rows import Row

    Numbers = NDArray[np.float64]

MACRO_F1 = "macro_f1"


@dataclass(frozen=True)
class ClassCounts:
    """The counts of each unit and class, as sparse matrices ``[units, classes]`` for each side and seed.

    ``right`` counts the examples whose label and prediction have the class, ``seen`` all labels and predictions that have it.
    """

    right: tuple[tuple[Any, ...], ...]
    seen: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, sides: Sequence[Sequence[Sequence[Row]]], unit_of: NDArray[np.intp]) -> ClassCounts:
        """Return the counts of rows ``[sides][seeds][examples]``. Labels and predictions are classes, or lists of them.

        Raises: ``ConfigError`` for a row without label or prediction.
        """
        classes: dict[Hashable, int] = {}
        known = [[[_sides_of(row, classes) for row in rows] for rows in side] for side in sides]
        shape = (int(unit_of.max()) + 1, max(len(classes), 1))
        right, seen = (
            tuple(tuple(_matrix([pick(*pair) for pair in rows], unit_of, shape) for rows in side) for side in known)
            for pick in (_shared, _both)
        )
        return cls(right, seen)

    @property
    def is_empty(self) -> bool:
        """True if a side and seed has no class at all."""
        return any(not one.nnz for side in self.seen for one in side)

    def macro_f1(self, counts: Numbers) -> Numbers:
        """Return F1 averaged over the classes that occur, ``[sides, seeds, resamples]``, for ``counts`` ``[resamples, units]``.

        It is nan for a resample without any class.
        """
        found = [
            [_mean_f1(right.T @ counts.T, seen.T @ counts.T) for right, seen in zip(rights, seens, strict=True)]
            for rights, seens in zip(self.right, self.seen, strict=True)
        ]
        return np.array(found, dtype=np.float64)


def macro_f1(rows: Sequence[Row]) -> float:
    """Return F1 averaged over the classes that occur as label or prediction. Raises: ``ConfigError`` as ``ClassCounts.of``."""
    counts = ClassCounts.of([[rows]], np.arange(len(rows)))
    return float(counts.macro_f1(np.ones((1, len(rows))))[0, 0, 0])


def class_ids(sides: Sequence[Sequence[Sequence[Row]]]) -> tuple[Numbers, Numbers]:
    """Return a number for each different label and prediction, ``[sides, seeds, examples]``, to compare them by."""
    known: dict[Any, int] = {}

    def number(value: Any) -> int:
        return known.setdefault(
            tuple(sorted(map(repr, value))) if isinstance(value, (list, tuple)) else value, len(known)
        )

    labels, predictions = (
        np.array([[[number(row.get(key)) for row in rows] for rows in side] for side in sides], dtype=np.float64)
        for key in ("label", "prediction")
    )
    return labels, predictions


def _mean_f1(right: Numbers, seen: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(seen > 0, 2 * right / seen, 0.0)
        found: Numbers = scores.sum(0) / (seen > 0).sum(0)
    return found


def _sides_of(row: Row, classes: dict[Hashable, int]) -> tuple[list[int], list[int]]:
    from kdplug.evidence.figures import items_of

    for key in ("label", "prediction"):
        if row.get(key) is None:
            raise ConfigError(f"example {row['id']!r} has no {key!r}, which macro F1 is computed from", field=key)
    is_list = isinstance(row["label"], (list, tuple))
    ((label, prediction),) = items_of(row, "classes" if is_list else "class")
    pair: Any = (label, prediction) if is_list else ((label,), (prediction,))
    own, found = ([classes.setdefault(name, len(classes)) for name in names] for names in pair)
    return own, found


def _shared(label: list[int], prediction: list[int]) -> list[int]:
    return [one for one in label if one in prediction]


def _both(label: list[int], prediction: list[int]) -> list[int]:
    return label + prediction


def _matrix(rows: list[list[int]], unit_of: NDArray[np.intp], shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_array

    columns = [one for row in rows for one in row]
    units = np.repeat(unit_of, [len(row) for row in rows])
    return csr_array((np.ones(len(columns)), (units, np.array(columns, dtype=np.intp))), shape=shape)
