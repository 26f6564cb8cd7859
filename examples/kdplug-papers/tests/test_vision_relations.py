"""Methods on relations between examples, against formulas written for each pair and triple."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from by_element import Array, close, draw
from kdplug_papers.relations import pkt, rkd, sp

import kdplug
from kdplug.testing import LossLaws

STUDENT, TEACHER = draw(5, 3), draw(5, 2, 4, seed=1)


def sides() -> tuple[Array, Array]:
    return STUDENT.numpy(), TEACHER.flatten(1).numpy()


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def length(vector: Array) -> float:
    return math.sqrt(sum(float(one) ** 2 for one in vector))


def cosine(one: Array, other: Array) -> float:
    if not length(one) or not length(other):
        return 0.0
    return float((one * other).sum()) / (length(one) * length(other))


def test_rkd_compares_distances_and_angles():
    distances, angles = [], []
    for side in sides():
        pairs = [length(side[i] - side[j]) for i, j in np.ndindex(5, 5)]
        mean = sum(pairs) / sum(one > 0 for one in pairs)
        distances.append([one / mean for one in pairs])
        angles.append([cosine(side[i] - side[j], side[i] - side[k]) for i, j, k in np.ndindex(5, 5, 5)])
    by_distance, by_angle = (
        sum(huber(one - other) for one, other in zip(*each, strict=True)) / len(each[0]) for each in (distances, angles)
    )
    close(rkd(STUDENT, TEACHER), 25 * by_distance + 50 * by_angle)
    close(rkd(STUDENT, TEACHER, distance=1, angle=0), by_distance)


def test_rkd_of_equal_examples_is_finite():
    student = torch.ones(3, 4, requires_grad=True)
    value = rkd(student, draw(3, 2).float())
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_sp_compares_rows_of_similarities():
    rows = []
    for side in sides():
        similarity = [[float((one * other).sum()) for other in side] for one in side]
        rows.append(np.array([np.array(row) / length(np.array(row)) for row in similarity]))
    close(sp(STUDENT, TEACHER), ((rows[0] - rows[1]) ** 2).sum() / 5**2)


def test_pkt_is_a_divergence_of_neighbourhoods():
    probabilities = []
    for side in sides():
        norms = [length(one) + 1e-7 for one in side]
        similarity = np.array(
            [
                [((one / a * other / b).sum() + 1) / 2 for other, b in zip(side, norms, strict=True)]
                for one, a in zip(side, norms, strict=True)
            ]
        )
        probabilities.append([row / row.sum() for row in similarity])
    own, other = probabilities
    total = sum(other[i][j] * math.log((other[i][j] + 1e-7) / (own[i][j] + 1e-7)) for i, j in np.ndindex(5, 5))
    close(pkt(STUDENT, TEACHER), total / 5**2)


@pytest.mark.parametrize("loss", [rkd, sp, pkt])
def test_batches_of_different_sizes_are_an_error(loss):
    with pytest.raises(kdplug.ShapeError, match=r"batches of 1, 5"):
        loss(STUDENT[:1], TEACHER)


class Relations(LossLaws):
    shape, teacher_shape = (4, 3), (4, 5)
    token_axes = ()
    may_differ = (1,)


class TestRKD(Relations):
    entry = "kdplug-papers:rkd"
    non_negative = True
    large_shape = (64, 4)


class TestRKDOfEqualWidths(Relations):
    entry = "kdplug-papers:rkd"
    teacher_shape = shape = (4, 3)
    non_negative = zero_at_equality = True
    large_shape = (64, 4)


class TestSP(Relations):
    entry = "kdplug-papers:sp"
    teacher_shape = shape = (4, 2, 3, 3)
    may_differ = (1, 2, 3)
    non_negative = zero_at_equality = True
    large_shape = (64, 2, 3, 3)


class TestPKT(Relations):
    entry = "kdplug-papers:pkt"
    teacher_shape = shape = (4, 3)
    zero_at_equality = True
    large_shape = (64, 4)
