"""Patch tokens, the queue of LightlyTrain, and DeiT's distillation head, against plain formulas."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from vision_oracle import close, draw, softmax

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.crd import CRDInBatch
from kdplug_vision.tokens import LightlyV1, deit_hard, deit_soft, vit_tokens


def test_the_hard_distillation_of_deit_is_cross_entropy_with_the_teachers_class():
    student, teacher, total = draw(4, 5), draw(4, 5, seed=1), 0.0
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= math.log(softmax(own)[max(range(5), key=other.__getitem__)])
    close(deit_hard(student, teacher), total / 4)


def test_the_soft_distillation_of_deit_has_two_divisors():
    student, teacher, total = draw(4, 5), draw(4, 5, seed=1), 0.0
    for own, other in zip(student / 3, teacher / 3, strict=True):
        q, p = softmax(own.tolist()), softmax(other.tolist())
        total += 9 * sum(one * math.log(one / two) for one, two in zip(p, q, strict=True))
    close(deit_soft(student, teacher, 3.0).value, total / (4 * 5))
    close(deit_soft(student, teacher, 3.0, divisor="items").value, total / 4)


def test_tokens_without_their_prefix_are_compared_on_the_teachers_grid():
    student, teacher = draw(2, 1 + 4, 3), draw(2, 3 + 16, 3, seed=1)
    grid = np.zeros((2, 3, 4, 4))
    tokens = student[:, 1:].numpy().reshape(2, 2, 2, 3).transpose(0, 3, 1, 2)
    for row, column in np.ndindex(4, 4):
        y, x = ((place + 0.5) / 2 - 0.5 for place in (row, column))
        y, x = min(max(y, 0), 1), min(max(x, 0), 1)
        top, left = int(y), int(x)
        down, right = min(top + 1, 1), min(left + 1, 1)
        dy, dx = y - top, x - left
        grid[:, :, row, column] = (
            tokens[:, :, top, left] * (1 - dy) * (1 - dx)
            + tokens[:, :, top, right] * (1 - dy) * dx
            + tokens[:, :, down, left] * dy * (1 - dx)
            + tokens[:, :, down, right] * dy * dx
        )
    target = teacher[:, 3:].numpy().reshape(2, 4, 4, 3).transpose(0, 3, 1, 2)
    close(vit_tokens(student, teacher, prefix_teacher=3).value, ((grid - target) ** 2).mean())


def test_maps_and_tokens_of_one_grid_are_the_same():
    maps, teacher = draw(2, 3, 4, 4), draw(2, 1 + 16, 3, seed=1)
    tokens = torch.cat([draw(2, 1, 3, seed=2), maps.flatten(2).mT], dim=1)
    close(vit_tokens(maps, teacher).value, vit_tokens(tokens, teacher).value.item())


@pytest.mark.parametrize(("shape", "message"), [((2, 16, 3), "15. Set prefix_student"), ((2, 3), "tokens .* or maps")])
def test_tokens_that_are_no_grid_are_an_error(shape, message):
    with pytest.raises(kdplug.ShapeError, match=message):
        vit_tokens(draw(*shape), draw(2, 17, 3))


def test_the_queue_holds_the_teachers_latest_features_and_gives_both_distributions():
    torch.manual_seed(0)
    loss = LightlyV1(3, 4, 100, queue=5).double()
    rows = [np.zeros(4)] * 5
    for seed in (0, 10, 20):
        student, teacher = draw(3, 3, seed=seed), draw(3, 4, seed=seed + 1)
        own = student.numpy() @ loss.project.weight.detach().numpy().T + loss.project.bias.detach().numpy()
        own = own / np.sqrt((own**2).sum(1, keepdims=True))
        other = teacher.numpy() / np.sqrt((teacher.numpy() ** 2).sum(1, keepdims=True))
        rows, total = [*other, *rows][:5], 0.0
        for s, t in zip(own, other, strict=True):
            q = softmax([float(s @ row) / 0.07 for row in rows])
            p = softmax([float(t @ row) / 0.07 for row in rows])
            total += sum(one * math.log(one / two) for one, two in zip(p, q, strict=True))
        close(loss(student, teacher).value, total / 3)
        np.testing.assert_allclose(loss.teacher_queue.numpy(), np.stack(rows), rtol=1e-12)
    before = loss.teacher_queue.clone()
    loss.eval()(draw(3, 3), draw(3, 4))
    assert torch.equal(loss.teacher_queue, before)


@pytest.mark.parametrize(("examples", "length"), [(20, 16), (100, 64), (249, 64), (50_000, 8192)])
def test_the_queues_length_follows_the_number_of_examples(examples, length):
    assert len(LightlyV1(3, 4, examples).teacher_queue) == length


def test_a_queue_as_long_as_the_data_is_an_error():
    with pytest.raises(kdplug.SettingError, match=r"queue: must be < 100"):
        LightlyV1(3, 4, 100, queue=100)


def test_the_contrast_in_a_batch_finds_the_own_example_in_both_directions():
    torch.manual_seed(0)
    loss, student, teacher = CRDInBatch(3, 4, width=2).double(), draw(5, 3), draw(5, 4, seed=1)
    sides = []
    for layer, features in ((loss.embed_student, student), (loss.embed_teacher, teacher)):
        side = features.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        sides.append(side / np.sqrt((side**2).sum(1, keepdims=True)))
    total = 0.0
    for anchors, others in (sides, sides[::-1]):
        for place, anchor in enumerate(anchors):
            total -= math.log(softmax([float(anchor @ other) / 0.07 for other in others])[place])
    close(loss(student, teacher).value, total / 2 / 5)


class TestDeitHard(LossLaws):
    entry = "kdplug-vision:deit_hard"
    non_negative = True


class TestDeitSoft(LossLaws):
    entry = "kdplug-vision:deit_soft"
    non_negative = zero_at_equality = reaches_teacher = t2 = True


class TestVitTokens(LossLaws):
    entry = "kdplug-vision:vit_tokens"
    shape = (3, 4, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    non_negative = zero_at_equality = True


class TestLightlyV1(LossLaws):
    entry = "kdplug-vision:lightly_v1"
    settings: ClassVar = {"queue": 6}
    shape, teacher_shape = (4, 3), (4, 5)
    token_axes = ()
    non_negative = True
    trains = ("project.weight",)


class TestCRDInBatch(LossLaws):
    entry = "kdplug-vision:crd_in_batch"
    shape, teacher_shape = (4, 3), (4, 5)
    token_axes = ()
    non_negative = True
    trains = ("embed_student.weight", "embed_teacher.weight")
