"""Methods on relations between examples, against formulas written for each pair and triple."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from vision_oracle import Array, close, draw

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.relations import CC, cc_paper, pkt, rkd, sp

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


def test_cc_multiplies_the_errors_of_neighbours_in_the_batch():
    torch.manual_seed(0)
    loss = CC(3, 8, width=2).double()
    own = STUDENT.numpy() @ loss.embed_student.weight.detach().numpy().T + loss.embed_student.bias.detach().numpy()
    other = sides()[1] @ loss.embed_teacher.weight.detach().numpy().T + loss.embed_teacher.bias.detach().numpy()
    total = 0.0
    for i in range(4):
        for d in range(2):
            total += abs(own[i, d] - other[i, d]) * abs(own[i + 1, d] - other[i + 1, d])
    close(loss(STUDENT, TEACHER), total / 4)
    assert loss(STUDENT[:1], TEACHER[:1]) == 0


def test_cc_of_the_paper_compares_truncated_gaussian_kernels():
    total = 0.0
    for i, j in np.ndindex(5, 5):
        kernels = []
        for side in sides():
            cosine = float(side[i] @ side[j]) / (length(side[i]) * length(side[j]))
            kernels.append(math.exp(-0.8) * (1 + 0.8 * cosine + 0.8**2 / 2 * cosine**2))
        total += (kernels[0] - kernels[1]) ** 2
    close(cc_paper(STUDENT, TEACHER), total / 25)


def test_cc_of_the_paper_tends_to_the_gaussian_kernel():
    own, other = (torch.nn.functional.normalize(one.flatten(1)) for one in (STUDENT, TEACHER))
    kernels = [torch.exp(-0.4 * torch.cdist(one, one) ** 2) for one in (own, other)]
    torch.testing.assert_close(
        cc_paper(STUDENT, TEACHER, order=20), torch.nn.functional.mse_loss(*kernels), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("loss", [rkd, sp, pkt, cc_paper, CC(3, 8).double()])
def test_batches_of_different_sizes_are_an_error(loss):
    with pytest.raises(kdplug.ShapeError, match=r"batches of 1, 5"):
        loss(STUDENT[:1], TEACHER)


class Relations(LossLaws):
    shape, teacher_shape = (4, 3), (4, 5)
    token_axes = ()
    may_differ = (1,)


class TestRKD(Relations):
    entry = "kdplug-vision:rkd"
    non_negative = True
    large_shape = (64, 4)


class TestRKDOfEqualWidths(Relations):
    entry = "kdplug-vision:rkd"
    teacher_shape = shape = (4, 3)
    non_negative = zero_at_equality = True
    large_shape = (64, 4)


class TestSP(Relations):
    entry = "kdplug-vision:sp"
    teacher_shape = shape = (4, 2, 3, 3)
    may_differ = (1, 2, 3)
    non_negative = zero_at_equality = True
    large_shape = (64, 2, 3, 3)


class TestPKT(Relations):
    entry = "kdplug-vision:pkt"
    teacher_shape = shape = (4, 3)
    zero_at_equality = True
    large_shape = (64, 4)


class TestCC(Relations):
    entry = "kdplug-vision:cc"
    may_differ = ()
    non_negative = True
    trains = ("embed_student.weight", "embed_teacher.weight")
    except_for: ClassVar = {
        "test_the_order_of_examples_does_not_matter": "it multiplies the errors of neighbours in the batch"
    }


class TestCCOfThePaper(Relations):
    entry = "kdplug-vision:cc_paper"
    teacher_shape = shape = (4, 3)
    non_negative = zero_at_equality = True
    large_shape = (64, 4)
