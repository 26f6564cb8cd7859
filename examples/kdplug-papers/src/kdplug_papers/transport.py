"""The exact solution of a small transport problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

_NOTHING = 1e-12
"""Amounts below this are rounding errors of weights that sum to 1."""

Amounts = Sequence[float]


def cheapest_plan(supply: Amounts, demand: Amounts, costs: Sequence[Amounts]) -> list[list[float]]:
    """Return how much of each supply goes to each demand so that ``Σ plan · costs`` is minimal.

    Each step sends as much as possible along the cheapest path from a supply to a demand, in which what was sent before
    may be taken back. Such a plan stays optimal for what was sent so far.

    Shapes: ``supply`` and ``demand`` sum to the same; ``costs`` is ``[len(supply)][len(demand)]``, finite.
    """
    left, wanted = list(supply), list(demand)
    plan = [[0.0] * len(wanted) for _ in left]
    while max(left) > _NOTHING and max(wanted) > _NOTHING:
        path = _cheapest_path(left, wanted, costs, plan)
        back = [(row, column) for row, column in zip(path[2::2], path[1::2], strict=False)]
        amount = min(left[path[0]], wanted[path[-1]], *(plan[row][column] for row, column in back))
        for row, column in zip(path[::2], path[1::2], strict=True):
            plan[row][column] += amount
        for row, column in back:
            plan[row][column] -= amount
        left[path[0]] -= amount
        wanted[path[-1]] -= amount
    return plan


def _cheapest_path(left: Amounts, wanted: Amounts, costs: Sequence[Amounts], plan: Sequence[Amounts]) -> list[int]:
    """Return supply, demand, supply, …, demand of the cheapest path, by the method of Bellman and Ford."""
    rows, columns = range(len(left)), range(len(wanted))
    to_row = [0.0 if amount > _NOTHING else math.inf for amount in left]
    to_column = [math.inf] * len(wanted)
    before_row, before_column = [-1] * len(left), [-1] * len(wanted)
    changed = True
    while changed:
        changed = False
        for row in rows:
            for column in columns:
                if to_row[row] + costs[row][column] < to_column[column] - _NOTHING:
                    to_column[column], before_column[column] = to_row[row] + costs[row][column], row
                    changed = True
                if plan[row][column] > _NOTHING and to_column[column] - costs[row][column] < to_row[row] - _NOTHING:
                    to_row[row], before_row[row] = to_column[column] - costs[row][column], column
                    changed = True
    column = min((one for one in columns if wanted[one] > _NOTHING), key=to_column.__getitem__)
    path = [column]
    while column >= 0:
        row = before_column[column]
        column = before_row[row]
        path += [row] if column < 0 else [row, column]
    return path[::-1]
