"""AB, factor transfer, SimKD and SemCKD, against formulas written element by element."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from vision_oracle import close, convolved, draw, pooled, standardised

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.boundary import AB
from kdplug_vision.factor import FT
from kdplug_vision.projector import SemCKD, SimKD


def test_ab_is_a_squared_hinge_on_the_teachers_side():
    torch.manual_seed(0)
    loss = AB([3, 4], [2, 4]).double()
    student, teacher = (
        [draw(3, 3, 4, 4), draw(3, 4, 2, 2, seed=1)],
        [draw(3, 2, 4, 4, seed=2), draw(3, 4, 2, 2, seed=3)],
    )
    total = 0.0
    for layer, (own, other) in enumerate(zip(student, teacher, strict=True)):
        responses = standardised(convolved(loss.connectors[0][0], own.numpy())) if layer == 0 else own.numpy()
        for place in np.ndindex(*other.shape):
            s, t = responses[place], other[place].item()
            term = (s + 1) ** 2 * (s > -1 and t <= 0) + (s - 1) ** 2 * (s <= 1 and t > 0)
            total += term * 2.0 ** (layer - 1)
    close(loss(student, teacher), total / 3)


def leaky(maps):
    return np.where(maps > 0, maps, 0.1 * maps)


def test_ft_compares_the_attention_of_the_factors():
    torch.manual_seed(0)
    loss = FT(3, 4).double()
    student, teacher = draw(2, 3, 4, 4), draw(2, 4, 2, 2, seed=1)
    own, other = student.numpy(), teacher.numpy()
    for place in (0, 3, 6):
        own = leaky(standardised(convolved(loss.translator[place], own)))
    for place in (0, 2, 4):
        other = leaky(convolved(loss.paraphraser[place], other))
    assert own.shape[1] == other.shape[1] == 2
    sides = []
    for side in (pooled(own, 2), other):
        strength = (side**2).mean(1).reshape(2, -1)
        sides.append(strength / np.sqrt((strength**2).sum(1, keepdims=True)))
    close(loss(student, teacher, 0.5), np.abs(sides[0] - sides[1]).mean())


def test_ft_trains_its_autoencoder_first_and_then_only_its_translator():
    loss = FT(3, 4, pretraining=0.2)
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 4, 4, 4)
    loss(student, teacher, 0.1).backward()
    assert student.grad is None
    assert all((one.grad is None) == name.startswith("translator") for name, one in loss.named_parameters())
    loss.zero_grad()
    loss(student, teacher, 0.2).backward()
    assert student.grad.abs().sum() > 0
    assert all((one.grad is None) != name.startswith("translator") for name, one in loss.named_parameters())


def test_simkd_is_the_mean_squared_error_after_its_projector():
    torch.manual_seed(0)
    loss = SimKD(3, 4).double()
    student, teacher = draw(2, 3, 4, 4), draw(2, 4, 2, 2, seed=1)
    maps = pooled(student.numpy(), 2)
    for place in (0, 3, 6):
        maps = np.maximum(standardised(convolved(loss.projector[place], maps)), 0)
    close(loss(student, teacher), ((maps - teacher.numpy()) ** 2).mean())


def test_the_student_of_simkd_is_its_backbone_projector_and_the_teachers_classifier():
    torch.manual_seed(0)
    loss, classifier = SimKD(3, 4).eval(), torch.nn.Linear(4, 5)
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    logits = classifier(loss.projector(student).mean((2, 3)))
    assert logits.shape == classifier(teacher.mean((2, 3))).shape


def embedded(network, maps):
    """The embedding of each example's similarities to the batch, with length 1."""
    rows = maps.reshape(len(maps), -1)
    values = np.array([[float(one @ two) for two in rows] for one in rows])
    first, last = network[0], network[2]
    values = np.maximum(values @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    values = values @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    return values / np.sqrt((values**2).sum(1, keepdims=True))


def test_semckd_weights_the_errors_of_all_pairs_of_layers():
    torch.manual_seed(0)
    loss = SemCKD([3, 2], [2, 4, 3], batch_size=8, tau=0.5).double()
    student = [draw(8, 3, 4, 4), draw(8, 2, 2, 2, seed=1)]
    teacher = [draw(8, 2, 4, 4, seed=2), draw(8, 4, 4, 4, seed=3), draw(8, 3, 2, 2, seed=4)]
    queries = [embedded(network, one.numpy()) for network, one in zip(loss.queries, student, strict=True)]
    keys = [embedded(network, one.numpy()) for network, one in zip(loss.keys, teacher, strict=True)]
    errors = np.zeros((8, 2, 3))
    for i, j in np.ndindex(2, 3):
        size = min(student[i].shape[2], teacher[j].shape[2])
        own, other = (pooled(one.numpy(), size) for one in (student[i], teacher[j]))
        projector = loss.projectors[i][j]
        own = np.maximum(standardised(convolved(projector[0], own)), 0)
        own = np.maximum(standardised(convolved(projector[3], own)), 0)
        errors[:, i, j] = ((convolved(projector[6], own) - other) ** 2).mean((1, 2, 3))
    total = 0.0
    for example, i in np.ndindex(8, 2):
        scores = [math.exp(float(queries[i][example] @ key[example]) / 0.5) for key in keys]
        total += sum(score / sum(scores) * errors[example, i, j] for j, score in enumerate(scores))
    close(loss(student, teacher).value, total / (8 * 2))


def test_semckd_does_not_count_a_batch_of_another_size():
    loss = SemCKD(3, 2, batch_size=8)
    found = loss(torch.randn(3, 3, 4, 4, requires_grad=True), torch.randn(3, 2, 4, 4))
    assert found.count == 0
    assert found.value == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AB(3, 2, margin=-1), "margin: must be >= 0"),
        (lambda: FT(3, 2, ratio=0), "ratio: must be > 0"),
        (lambda: FT(3, 2, pretraining=1), "pretraining: must be < 1"),
        (lambda: SimKD(3, 2, factor=0), "factor: must be >= 1"),
        (lambda: SemCKD(3, 2, batch_size=7), "batch_size: must be >= 8"),
        (lambda: SemCKD(3, 2, batch_size=8, tau=0), "tau: must be > 0"),
    ],
)
def test_a_setting_out_of_range_is_an_error(make, message):
    with pytest.raises(kdplug.SettingError, match=message):
        make()


class Maps(LossLaws):
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    non_negative = True


class TestAB(Maps):
    entry = "kdplug-vision:ab"
    layers = 2
    trains = ("connectors.0.0.weight", "connectors.1.1.bias")


class TestFT(Maps):
    entry = "kdplug-vision:ft"
    trains = ("translator.0.weight", "translator.6.weight")
    except_for: ClassVar = {
        "test_every_parameter_is_trained": "the autoencoder is trained at the beginning of a run alone"
    }


class TestSimKD(Maps):
    entry = "kdplug-vision:simkd"
    trains = ("projector.0.weight", "projector.7.weight")


class TestSemCKD(Maps):
    entry = "kdplug-vision:semckd"
    settings: ClassVar = {"batch_size": 8}
    shape, teacher_shape = (8, 3, 3, 4), (8, 2, 3, 4)
    layers = 2
    except_for: ClassVar = {
        "test_the_order_of_examples_does_not_matter": "its networks read similarities by their place in the batch"
    }
    trains = ("queries.0.0.weight", "keys.1.2.weight", "projectors.0.1.0.weight")
