"""Relations between channels, against formulas written for each pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from vision_oracle import Array, close, convolved, draw, pooled, standardised

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.channels import ICKD, SRD, SRDCorrelation, fsp_map, nst_map, pearson_kd


def kernel(own: Array, other: Array) -> float:
    """The mean over pairs of channels of the squared dot product."""
    values = [
        (float(one.flatten() @ two.flatten()) / math.sqrt(float((one**2).sum()) * float((two**2).sum()))) ** 2
        for one in own
        for two in other
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("channels", [2, 7])
def test_nst_is_the_discrepancy_of_channels_with_few_and_with_many_positions(channels):
    student, teacher = draw(3, channels, 4, 4), draw(3, 5, 2, 2, seed=1)
    smaller, total = pooled(student.numpy(), 2), 0.0
    for own, other in zip(smaller, teacher.numpy(), strict=True):
        total += kernel(own, own) + kernel(other, other) - 2 * kernel(own, other)
    close(nst_map(student, teacher).value, total / 3)
    large = draw(3, 2, 4, 6), draw(3, 3, 4, 6, seed=1)
    expected = sum(
        kernel(own, own) + kernel(other, other) - 2 * kernel(own, other)
        for own, other in zip(large[0].numpy(), large[1].numpy(), strict=True)
    )
    close(nst_map(*large).value, expected / 3)


def test_fsp_compares_the_flow_between_consecutive_layers():
    student = [draw(3, 2, 4, 4), draw(3, 5, 2, 2, seed=1), draw(3, 4, 2, 2, seed=2)]
    teacher = [draw(3, 2, 2, 2, seed=3), draw(3, 5, 4, 4, seed=4), draw(3, 4, 4, 4, seed=5)]
    total = 0.0
    for place in (0, 1):
        flows = []
        for side in (student, teacher):
            pair = [one.numpy() for one in side[place : place + 2]]
            size = min(one.shape[2] for one in pair)
            lower, upper = (one if one.shape[2] == size else pooled(one, size) for one in pair)
            flow = np.zeros((3, lower.shape[1], upper.shape[1]))
            for example, a, b in np.ndindex(*flow.shape):
                flow[example, a, b] = (lower[example, a] * upper[example, b]).mean()
            flows.append(flow)
        total += ((flows[0] - flows[1]) ** 2).mean()
    close(fsp_map(student, teacher).value, total)


def test_fsp_needs_two_layers_with_equal_channels():
    with pytest.raises(kdplug.OutputsError, match=r"^fsp_map compares consecutive layers and got one\. Give two"):
        fsp_map([draw(3, 2, 4, 4)], [draw(3, 2, 4, 4)])
    with pytest.raises(kdplug.ShapeError, match=r"^fsp_map needs the same numbers of channels"):
        fsp_map([draw(3, 2, 4, 4), draw(3, 5, 4, 4)], [draw(3, 2, 4, 4), draw(3, 4, 4, 4)])


def test_ickd_embeds_the_student_alone_and_normalises_rows():
    torch.manual_seed(0)
    loss = ICKD(3, 4).double()
    student, teacher = draw(2, 3, 4, 4), draw(2, 4, 2, 3, seed=1)
    own, total = standardised(convolved(loss.embed[0], student.numpy())), 0.0
    for example in range(2):
        grams = []
        for maps in (own[example].reshape(4, -1), teacher.numpy()[example].reshape(4, -1)):
            gram = np.array([[float(one @ two) for two in maps] for one in maps])
            grams.append(gram / np.sqrt((gram**2).sum(1, keepdims=True)))
        total += ((grams[0] - grams[1]) ** 2).sum()
    close(loss(student, teacher), total / (4 * 2))


def test_pearson_standardises_each_channel_over_the_batch():
    student, teacher = draw(3, 2, 4, 4), draw(3, 2, 2, 2, seed=1)
    smaller, total = pooled(student.numpy(), 2), 0.0
    for channel in range(2):
        sides = []
        for side in (smaller[:, channel], teacher.numpy()[:, channel]):
            deviation = math.sqrt(((side - side.mean()) ** 2).sum() / (side.size - 1))
            sides.append((side - side.mean()) / (deviation + 1e-6))
        total += ((sides[0] - sides[1]) ** 2).mean() / 2
    close(pearson_kd(student, teacher), total / 2)


def test_pearson_is_one_minus_the_correlation():
    student, teacher = draw(30, 1, 8, 8), draw(30, 1, 8, 8, seed=1)
    correlation = np.corrcoef(student.flatten().numpy(), teacher.flatten().numpy())[0, 1]
    assert pearson_kd(student, teacher).item() == pytest.approx(1 - correlation, rel=1e-3)
    assert pearson_kd(student, -3 * student + 5).item() == pytest.approx(2, rel=1e-3)


def test_a_constant_channel_has_a_finite_loss_and_gradient():
    student = torch.zeros(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    pearson_kd(student, draw(3, 2, 4, 4)).backward()
    assert student.grad.isfinite().all()


def embedded(loss, student: torch.Tensor) -> Array:
    return student.numpy() @ loss.embed.weight.detach().numpy().T + loss.embed.bias.detach().numpy()


def test_srd_is_the_logarithm_of_fourth_powers():
    torch.manual_seed(0)
    loss, student, teacher = SRD(3, 4).double(), draw(6, 3), draw(6, 4, seed=1)
    sides = [(side - side.mean(0)) / np.sqrt(side.var(0) + 1e-4) for side in (embedded(loss, student), teacher.numpy())]
    close(loss(student, teacher), math.log((np.abs(sides[0] - sides[1]) ** 4).sum()))


def test_srd_of_equal_features_is_finite():
    loss = SRD(3, 3)
    with torch.no_grad():
        loss.embed.weight.copy_(torch.eye(3))
        loss.embed.bias.zero_()
    student = torch.randn(6, 3, requires_grad=True)
    value = loss(student, student)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_srd_corr_is_the_logarithm_of_missing_correlations():
    torch.manual_seed(0)
    loss, student, teacher = SRDCorrelation(3, 4).double(), draw(6, 3, 2, 2), draw(6, 4, seed=1)
    own = embedded(loss, student.mean((2, 3)))
    total = sum((np.corrcoef(own[:, d], teacher.numpy()[:, d])[0, 1] - 1) ** 4 for d in range(4))
    close(loss(student, teacher), math.log(total + 1e-5))


class Maps(LossLaws):
    shape = (4, 3, 5, 6)
    token_axes = ()


class TestNst(Maps):
    entry = "kdplug-vision:nst_map"
    layers = 2
    may_differ = (1, 2, 3)
    non_negative = zero_at_equality = True


class TestFsp(Maps):
    entry = "kdplug-vision:fsp_map"
    layers = 2
    may_differ = (2, 3)
    non_negative = zero_at_equality = True


class TestIckd(Maps):
    entry = "kdplug-vision:ickd"
    teacher_shape = (4, 2, 5, 6)
    may_differ = (2, 3)
    non_negative = True
    trains = ("embed.0.weight", "embed.1.weight")


class TestPearson(Maps):
    entry = "kdplug-vision:pearson_kd"
    layers = 2
    may_differ = (2, 3)
    non_negative = zero_at_equality = True


class TestSrd(LossLaws):
    entry = "kdplug-vision:srd"
    shape, teacher_shape = (6, 3), (6, 4)
    token_axes = ()
    trains = ("embed.weight",)


class TestSrdCorr(LossLaws):
    entry = "kdplug-vision:srd_corr"
    shape, teacher_shape = (6, 3), (6, 4)
    token_axes = ()
    trains = ("embed.weight",)
