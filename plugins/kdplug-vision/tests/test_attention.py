"""Where maps are active, against formulas written for each position."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from vision_oracle import close, draw, pooled, softmax

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.attention import at, at_paper, cat_kd, cwd

STUDENT, TEACHER = draw(3, 2, 4, 6), draw(3, 2, 2, 3, seed=1)
WEIGHTS = {"fc:parameter.weight": draw(5, 2, seed=4)}, {"head:parameter.weight": draw(5, 3, seed=5)}


def test_the_papers_attention_transfer_is_a_norm_for_each_example():
    smaller, total = STUDENT.numpy().reshape(3, 2, 2, 2, 3, 2).mean((3, 5)), 0.0
    for example in range(3):
        attention = []
        for side in (smaller[example], TEACHER.numpy()[example]):
            strength = (side**2).mean(0).flatten()
            attention.append(strength / math.sqrt((strength**2).sum()))
        total += math.sqrt(((attention[0] - attention[1]) ** 2).sum())
    close(at_paper(STUDENT, TEACHER).value, total / 3)
    close(at_paper([STUDENT, STUDENT], [TEACHER, TEACHER]).value, 2 * total / 3)


def test_both_attention_transfers_are_related_for_one_example():
    own, other = STUDENT[:1], TEACHER[:1]
    close(at(own, other).value * 6, at_paper(own, other).value.item() ** 2)


def test_cwd_compares_where_each_channel_is_strong():
    smaller, total, tau = STUDENT.numpy().reshape(3, 2, 2, 2, 3, 2).mean((3, 5)), 0.0, 3.0
    for example, channel in np.ndindex(3, 2):
        q = softmax(smaller[example, channel].flatten() / tau)
        p = softmax(TEACHER.numpy()[example, channel].flatten() / tau)
        total += sum(one * math.log(one / two) for one, two in zip(p, q, strict=True))
    close(cwd(STUDENT, TEACHER, tau=tau).value, total * tau**2 / 2 / 3)


@pytest.mark.parametrize("normalized", [False, True])
def test_cat_kd_compares_pooled_maps_of_the_classes(normalized):
    student, teacher = draw(3, 2, 5, 4), draw(3, 3, 6, 6, seed=1)
    sides = []
    for maps, weights in zip((student, teacher), WEIGHTS, strict=True):
        (weight,) = weights.values()
        activation = np.zeros((3, 5, *maps.shape[2:]))
        for example, label, row, column in np.ndindex(*activation.shape):
            activation[example, label, row, column] = float(maps[example, :, row, column] @ weight[label])
        side = pooled(activation, 2)
        if normalized:
            side = side / np.sqrt((side**2).sum((2, 3), keepdims=True))
        sides.append(side)
    close(cat_kd(student, teacher, *WEIGHTS, normalized=normalized).value, ((sides[0] - sides[1]) ** 2).mean())


def test_cat_kd_accepts_a_classifier_that_is_a_convolution_and_trains_the_students():
    student, teacher = draw(3, 2, 5, 4), draw(3, 3, 6, 6, seed=1)
    own = {"fc:parameter.weight": WEIGHTS[0]["fc:parameter.weight"][:, :, None, None].clone().requires_grad_()}
    found = cat_kd(student, teacher, own, WEIGHTS[1]).value
    close(found, cat_kd(student, teacher, *WEIGHTS).value.item())
    found.backward()
    assert own["fc:parameter.weight"].grad.abs().sum() > 0


@pytest.mark.parametrize("weights", [{}, {"a": draw(5, 4)}, {"a": draw(5, 2), "b": draw(5)}])
def test_parameters_that_are_no_classifier_are_an_error(weights):
    with pytest.raises(kdplug.ShapeError, match=r"^cat_kd needs the weight \[classes, 2\] .* reads_S; got"):
        cat_kd(draw(3, 2, 5, 4), draw(3, 3, 6, 6), weights, WEIGHTS[1])


def test_a_number_of_channels_or_classes_that_differs_is_an_error():
    with pytest.raises(kdplug.ShapeError, match=r"^cwd needs the same shape"):
        cwd(STUDENT, draw(3, 4, 2, 3))
    with pytest.raises(kdplug.ShapeError, match=r"^cat_kd needs the same number of classes"):
        cat_kd(draw(3, 2, 5, 4), draw(3, 3, 6, 6), {"a": draw(4, 2)}, WEIGHTS[1])


@pytest.mark.parametrize("settings", [{"tau": 0}, {"tau": -1}])
def test_cwd_needs_a_positive_temperature(settings):
    with pytest.raises(kdplug.SettingError, match="must be > 0"):
        cwd(STUDENT, TEACHER, **settings)


class Maps(LossLaws):
    shape = (4, 3, 5, 6)
    token_axes = ()


class TestAtOfThePaper(Maps):
    entry = "kdplug-vision:at_paper"
    layers = 2
    may_differ = (1, 2, 3)
    non_negative = zero_at_equality = True


class TestCwd(Maps):
    entry = "kdplug-vision:cwd"
    may_differ = (2, 3)
    non_negative = zero_at_equality = True


class TestCatKd(Maps):
    entry = "kdplug-vision:cat_kd"
    student_parameters: ClassVar = {"fc:parameter.weight": (5, 3)}
    teacher_parameters: ClassVar = {"fc:parameter.weight": (5, 3)}
    may_differ = (2, 3)
    non_negative = True
    except_for: ClassVar = {
        "test_no_student_is_better_than_the_teacher_itself": "equal maps have different class maps if the classifiers differ"
    }
