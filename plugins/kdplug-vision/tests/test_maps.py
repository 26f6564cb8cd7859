"""Methods on feature maps, against formulas written element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from vision_oracle import close, convolved, draw, enlarged, pooled, standardised

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.attention import at
from kdplug_vision.regression import MGD, VID, FitNet
from kdplug_vision.review import ReviewKD


def test_fitnet_is_the_mean_squared_error_of_its_regressor():
    torch.manual_seed(0)
    loss = FitNet(3, 4).double()
    student, teacher = draw(2, 3, 5, 6), draw(2, 4, 5, 6, seed=1)
    regressed = np.maximum(standardised(convolved(loss.regressor[0], student.numpy())), 0)
    total = sum((regressed[place] - teacher[place].item()) ** 2 for place in np.ndindex(2, 4, 5, 6))
    close(loss(student, teacher), total / (2 * 4 * 5 * 6))


def test_fitnet_pools_the_larger_map_to_the_smaller_one():
    torch.manual_seed(0)
    loss = FitNet(3, 4).double().eval()
    student, teacher = draw(2, 3, 8, 8), draw(2, 4, 4, 4, seed=1)
    expected = (pooled(loss.regressor(student).detach().numpy(), 4) - teacher.numpy()) ** 2
    close(loss(student, teacher), expected.mean())


def test_fitnet_with_a_stride_takes_a_student_of_twice_the_size():
    assert FitNet(3, 4, stride=2)(torch.randn(2, 3, 8, 6), torch.randn(2, 4, 4, 3)) > 0


def test_vid_is_the_likelihood_of_the_teacher():
    torch.manual_seed(0)
    loss = VID(3, 4, variance=2.0).double()
    with torch.no_grad():
        loss.scale.copy_(draw(4, seed=5))
    student, teacher = draw(2, 3, 4, 6), draw(2, 4, 2, 3, seed=1)
    mean = student.reshape(2, 3, 2, 2, 3, 2).numpy().mean(axis=(3, 5))
    for place in (0, 2):
        mean = np.maximum(convolved(loss.mean[place], mean), 0)
    mean, total = convolved(loss.mean[4], mean), 0.0
    for example, channel, row, column in np.ndindex(2, 4, 2, 3):
        variance = math.log(1 + math.exp(loss.scale[channel].item())) + 1e-5
        error = mean[example, channel, row, column] - teacher[example, channel, row, column].item()
        total += (error**2 / variance + math.log(variance)) / 2
    close(loss(student, teacher).value, total / (2 * 4 * 2 * 3))


def test_vid_starts_at_its_variance():
    variance = torch.nn.functional.softplus(VID(2, 3).scale) + 1e-5
    torch.testing.assert_close(variance, torch.full((3,), 5.0))


@pytest.mark.parametrize(("masks", "shape"), [("channels", (5, 4, 1, 1)), ("positions", (5, 1, 6, 7))])
def test_mgd_generates_the_teacher_from_what_its_mask_keeps(masks, shape):
    torch.manual_seed(0)
    loss = MGD(3, 4, masked=0.4, masks=masks).double()
    student, teacher = draw(5, 3, 6, 7), draw(5, 4, 6, 7, seed=1)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(11)).numpy() >= 0.4
    assert 0.2 < 1 - kept.mean() < 0.6
    maps = np.where(kept, convolved(loss.align, student.numpy()), 0.0)
    generated = convolved(loss.generation[2], np.maximum(convolved(loss.generation[0], maps), 0))
    total = sum((generated[place] - teacher[place].item()) ** 2 for place in np.ndindex(5, 4, 6, 7))
    close(loss(student, teacher, 11).value, total / 5)


@pytest.mark.parametrize("masks", ["channels", "positions"])
def test_mgd_masks_the_share_that_it_is_given(masks):
    loss, shares = MGD(1, 1, masked=0.15, masks=masks), []
    loss.generation = torch.nn.Identity()  # the error is then 1 where the mask keeps, 0 elsewhere
    for seed in range(200):
        ones = torch.ones(4, 1, 5, 5)
        shares.append(1 - loss(ones, torch.zeros_like(ones), seed).value.item() / 25)
    assert sum(shares) / len(shares) == pytest.approx(0.15, abs=0.03)


def test_at_compares_where_the_channels_are_strong():
    student, teacher = (
        [draw(3, 2, 4, 6), draw(3, 4, 2, 3, seed=1)],
        [draw(3, 5, 2, 3, seed=2), draw(3, 6, 4, 6, seed=3)],
    )
    total = 0.0
    for own, other in zip(student, teacher, strict=True):
        sides = [
            one.numpy() if one.shape[2] == 2 else one.reshape(3, -1, 2, 2, 3, 2).numpy().mean((3, 5))
            for one in (own, other)
        ]
        for example in range(3):
            attention = []
            for side in sides:
                strength = [(side[example, :, row, column] ** 2).mean() for row, column in np.ndindex(2, 3)]
                attention.append(np.array(strength) / math.sqrt(sum(one**2 for one in strength)))
            total += ((attention[0] - attention[1]) ** 2).sum() / 6
    close(at(student, teacher).value, total / 3)
    assert at(student[0], teacher[0]).value < at(student, teacher).value


def test_reviewkd_fuses_from_the_deepest_stage_and_compares_at_every_size():
    torch.manual_seed(0)
    loss = ReviewKD([3, 4, 2], [2, 5, 3]).double()
    student = [draw(2, 3, 8, 8), draw(2, 4, 4, 4, seed=1), draw(2, 2, 2, 2, seed=2)]
    teacher = [draw(2, 2, 8, 8, seed=3), draw(2, 5, 8, 8, seed=4), draw(2, 3, 2, 2, seed=5)]
    total, fused = 0.0, None
    for stage in (2, 1, 0):
        own = standardised(convolved(loss.reduce[stage][0], student[stage].numpy()))
        size = own.shape[2]
        if fused is not None:
            deeper = enlarged(fused, size, size)
            both = convolved(loss.mix[stage], np.concatenate([own, deeper], axis=1))
            shares = 1 / (1 + np.exp(-both))
            own = own * shares[:, [0]] + deeper * shares[:, [1]]
        target = teacher[stage].numpy()
        fused = enlarged(own, target.shape[2], target.shape[2])
        expanded = standardised(convolved(loss.expand[stage][0], fused))
        weights = {8: {8: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8}, 2: {2: 1, 1: 1 / 2}}[target.shape[2]]
        errors = {to: ((pooled(expanded, to) - pooled(target, to)) ** 2).mean() for to in weights}
        total += sum(weights[to] * errors[to] for to in weights) / sum(weights.values())
    close(loss(student, teacher), total)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "vid", "variance": 0.0}, r"^terms\.0\.loss\.variance: must be > 1e-05, got 0\.0"),
        ({"name": "mgd", "masked": 1.0}, r"^terms\.0\.loss\.masked: must be < 1, got 1\.0"),
        ({"name": "mgd", "masked": -0.1}, r"^terms\.0\.loss\.masked: must be >= 0, got -0\.1"),
    ],
)
def test_a_setting_out_of_range_is_an_error_with_its_path(loss, message):
    config = kdplug.DistillationConfig(terms=[{"loss": loss, "layer_S": 0, "layer_T": 0, "feature": "hidden"}])
    maps = {"hidden": [torch.randn(2, 3, 4, 4)]}
    with pytest.raises(kdplug.SettingError, match=message):
        kdplug.Objective(config).materialize(student=maps, teacher=maps)


@pytest.mark.parametrize("loss", [FitNet(2, 3), VID(2, 3), MGD(2, 3), ReviewKD([2], [3])])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 4, 4), (2, 2, 4, 4), (2, 3, 4, 1), (2, 3, 5, 5)])
def test_maps_that_do_not_match_are_an_error(loss, shape):
    inputs = [torch.randn(2, 2, 4, 4), torch.randn(shape), *([1] if isinstance(loss, MGD) else [])]
    if shape[:2] == (2, 3) and len(shape) == 4:
        found = loss(*inputs)
        assert torch.as_tensor(getattr(found, "total", found)).isfinite()  # one side is resized
    else:
        with pytest.raises(kdplug.ShapeError):
            loss(*inputs)


class TestFitNet(LossLaws):
    entry = "kdplug-vision:fitnet"
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    non_negative = True
    trains = ("regressor.0.weight", "regressor.1.weight")


class TestVID(LossLaws):
    entry = "kdplug-vision:vid"
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    trains = ("mean.0.weight", "scale")


class TestMGD(LossLaws):
    entry = "kdplug-vision:mgd"
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    may_differ = (2, 3)
    non_negative = True
    trains = ("align.weight", "generation.0.weight")


class TestAttentionTransfer(LossLaws):
    entry = "kdplug-vision:at"
    shape = (4, 3, 5, 6)
    token_axes = ()
    layers = 2
    may_differ = (1, 2, 3)
    non_negative = zero_at_equality = True


class TestReviewKD(LossLaws):
    entry = "kdplug-vision:reviewkd"
    shape, teacher_shape = (4, 3, 4, 4), (4, 2, 4, 4)
    token_axes = ()
    layers = 2
    may_differ = (2, 3)
    non_negative = True
    trains = ("reduce.0.0.weight", "mix.0.weight", "expand.1.0.weight")
