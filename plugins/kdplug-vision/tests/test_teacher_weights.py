"""SRRL and OFD, which use parameters of the teacher, against formulas written element by element."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import pytest
import torch
from vision_oracle import close, convolved, draw, standardised

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.teacher_weights import OFD, SRRL

CLASSIFIER = {"fc:parameter.weight": draw(5, 4, seed=8), "fc:parameter.bias": draw(5, seed=9)}
BATCH_NORMS = {
    "bn1:parameter.weight": torch.tensor([1.0, -0.5], dtype=torch.float64),
    "bn1:parameter.bias": torch.tensor([0.3, 1.7], dtype=torch.float64),
    "bn2:parameter.weight": torch.tensor([2.0, 0.7, 0.1, 1.0], dtype=torch.float64),
    "bn2:parameter.bias": torch.tensor([-1.0, 0.0, 1.0, -5.0], dtype=torch.float64),
}


@pytest.mark.parametrize("has_bias", [True, False])
def test_srrl_regresses_features_and_the_logits_of_the_teachers_classifier(has_bias):
    torch.manual_seed(0)
    loss = SRRL(3, 4, regression=0.7).double()
    student, teacher, logits = draw(6, 3, 2, 3), draw(6, 4, 5, 1, seed=1), draw(6, 5, seed=2)
    parameters = dict(list(CLASSIFIER.items())[: 1 + has_bias])
    connected = np.maximum(standardised(convolved(loss.connector[0], student.numpy())), 0).mean(axis=(2, 3))
    pooled = teacher.numpy().mean(axis=(2, 3))
    features = sum((connected[i, c] - pooled[i, c]) ** 2 for i, c in np.ndindex(6, 4)) / 24
    bias = CLASSIFIER["fc:parameter.bias"].numpy() * has_bias
    predicted = [[weight @ row for weight in CLASSIFIER["fc:parameter.weight"].numpy()] + bias for row in connected]
    regression = sum((predicted[i][c] - logits[i, c].item()) ** 2 for i, c in np.ndindex(6, 5)) / 30
    close(loss(student, teacher, logits, parameters), features + 0.7 * regression)


def test_srrl_takes_pooled_features():
    torch.manual_seed(0)
    loss, student, teacher, logits = SRRL(3, 4).double(), draw(6, 3), draw(6, 4, seed=1), draw(6, 5, seed=2)
    as_maps = loss(student[:, :, None, None], teacher[:, :, None, None], logits, CLASSIFIER)
    assert torch.equal(loss(student, teacher, logits, CLASSIFIER), as_maps)


def margin(scale: float, shift: float) -> float:
    """The mean of the negative half of a normal distribution, by numerical integration."""
    deviation = abs(scale)
    negative = NormalDist().cdf(-shift / deviation)
    if negative <= 0.001:
        return -3 * deviation
    steps = np.linspace(min(shift, 0) - 12 * deviation, 0, 200_001)
    density = np.exp(-(((steps - shift) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    return float(np.trapezoid(steps * density, steps)) / negative


def test_ofd_counts_only_what_the_teachers_margin_leaves():
    torch.manual_seed(0)
    loss = OFD([3, 2], [2, 4]).double()
    student = [draw(3, 3, 4, 5), draw(3, 2, 2, 3, seed=1)]
    teacher = [draw(3, 2, 4, 5, seed=2), 2 * draw(3, 4, 2, 3, seed=3)]
    values, total, counted = list(BATCH_NORMS.values()), 0.0, set()
    for stage in (0, 1):
        connected = standardised(convolved(loss.connectors[stage][0], student[stage].numpy()))
        for place in np.ndindex(*teacher[stage].shape):
            scale, shift = (values[2 * stage + one][place[1]].item() for one in (0, 1))
            target = max(teacher[stage][place].item(), margin(scale, shift))
            counts = connected[place] > target or target > 0
            counted.add((bool(counts), target > 0))
            total += (connected[place] - target) ** 2 * counts / 2 ** (1 - stage)
    assert counted == {(True, True), (True, False), (False, False)}
    torch.testing.assert_close(loss(student, teacher, BATCH_NORMS).item(), total / 3, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"bn": draw(4)},
        {"bn": draw(4), "b": draw(3)},
        {"fc": draw(5, 3)},
        {"a": draw(5, 4), "b": draw(5), "c": draw(5)},
    ],
)
def test_parameters_that_are_not_those_of_the_method_are_an_error(parameters):
    maps = draw(6, 3, 2, 2), draw(6, 4, 2, 2, seed=1)
    with pytest.raises(kdplug.ShapeError, match=r"^srrl needs the weight .* reads_T; got"):
        SRRL(3, 4).double()(*maps, draw(6, 5), parameters)
    with pytest.raises(kdplug.ShapeError, match=r"^ofd needs weight, then bias, of .* reads_T; got"):
        OFD(3, 4).double()(*maps, parameters)


class WithClassifier(SRRL):
    """``SRRL`` for the laws: the teacher's logits are those of a fixed classifier."""

    def forward(self, student_features, teacher_features):
        parameters = {name: value[..., :2] if value.dim() == 2 else value for name, value in CLASSIFIER.items()}
        parameters = {name: value.to(teacher_features.dtype) for name, value in parameters.items()}
        logits = torch.nn.functional.linear(teacher_features.mean((2, 3)), *parameters.values())
        return super().forward(student_features, teacher_features, logits, parameters)


class TestSRRL(LossLaws):
    entry = WithClassifier
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    non_negative = True
    trains = ("connector.0.weight", "connector.1.bias")


class TestOFD(LossLaws):
    entry = "kdplug-vision:ofd"
    teacher_parameters: ClassVar = dict.fromkeys(BATCH_NORMS, (2,))
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    layers = 2
    non_negative = True
    trains = ("connectors.0.0.weight", "connectors.1.1.bias")


def test_ofd_refuses_a_bias_before_its_weight():
    swapped = dict(zip(["bn:parameter.bias", "bn:parameter.weight"], [draw(4), draw(4)], strict=True))
    with pytest.raises(kdplug.ShapeError, match=r"got bn:parameter\.bias \[4\], bn:parameter\.weight \[4\]"):
        OFD(3, 4).double()(draw(6, 3, 2, 2), draw(6, 4, 2, 2), swapped)
