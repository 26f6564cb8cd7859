"""DiffKD against a denoising loop written step by step."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import mse_loss
from vision_oracle import close, draw

import kdplug
from kdplug.testing import LossLaws
from kdplug_vision.diffusion import DiffKD

MAPS = draw(3, 3, 4, 4), draw(3, 4, 4, 4, seed=1)


def made(**settings) -> DiffKD:
    torch.manual_seed(0)
    return DiffKD(3, 4, **settings).double()


def cumulated(step: int) -> float:
    """The share of the signal's variance that is left after ``step + 1`` steps of a linear schedule."""
    product = 1.0
    for place in range(step + 1):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * place / 999)
    return product


def by_formula(loss: DiffKD, student: torch.Tensor, teacher: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(3, 4, 4, 4, generator=generator).double()

    def predicted(noisy, steps):
        return loss.denoiser(noisy + loss.times.weight[steps].view(len(noisy), -1, 1, 1))

    own = loss.align(student)
    shares = loss.noise_level(own).softmax(1)[:, 0].view(-1, 1, 1, 1)
    value = shares * own + (1 - shares) * noise()
    for step, before in ((400, 300), (300, 200), (200, 100), (100, 0), (0, None)):
        signal, earlier = cumulated(step), 1.0 if before is None else cumulated(before)
        guess = predicted(value, torch.tensor([step] * 3))
        clean = (value - math.sqrt(1 - signal) * guess) / math.sqrt(signal)
        value = math.sqrt(earlier) * clean + math.sqrt(1 - earlier) * guess
    target = noise()
    steps = torch.randint(1000, (3,), generator=generator)
    signal = torch.tensor([cumulated(step) for step in steps.tolist()], dtype=torch.float64).view(-1, 1, 1, 1)
    noisy = signal.sqrt() * teacher + (1 - signal).sqrt() * target
    return mse_loss(loss.project(value), teacher) + mse_loss(predicted(noisy, steps), target)


def test_it_denoises_the_student_by_ddim_and_trains_the_denoiser():
    loss = made()
    expected = by_formula(made(), *MAPS, 5)
    torch.testing.assert_close(loss(*MAPS, 5), expected, rtol=1e-5, atol=0)


def test_the_autoencoder_compresses_the_teacher_and_its_error_is_added():
    loss = made(latent=2)
    found = loss(*MAPS, 5)
    fresh = made(latent=2)
    hidden = fresh.encoder(MAPS[1])
    error = mse_loss(fresh.decoder(hidden), MAPS[1])
    assert hidden.shape == (3, 2, 4, 4)
    assert found > error > 0
    found.backward()
    assert all(one.grad is not None for one in loss.parameters())


def test_on_logits_it_is_a_divergence_of_the_denoised_ones():
    loss = made(kernel_size=1)
    logits = draw(3, 3), draw(3, 4, seed=1)
    loss(*logits, 5).backward()
    own, other = draw(3, 4, 1, 1, seed=2), draw(3, 4, 1, 1, seed=3)
    q, p = (one.flatten(1).softmax(1) for one in (own, other))
    close(loss._distance(own, other), float((p * (p / q).log()).sum(1).mean()))
    assert not any(isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3) for part in loss.modules())


@pytest.mark.parametrize(
    "settings", [{"kernel_size": 2}, {"kernel_size": 5}, {"steps": 0}, {"steps": 501}, {"latent": 0}]
)
def test_a_setting_out_of_range_is_an_error(settings):
    with pytest.raises(kdplug.SettingError, match=next(iter(settings))):
        made(**settings)


def test_tokens_are_an_error():
    with pytest.raises(kdplug.ShapeError, match=r"^diffkd compares maps or pooled features"):
        made()(draw(3, 5, 3), draw(3, 5, 4), 1)


class TestDiffKD(LossLaws):
    entry = "kdplug-vision:diffkd"
    shape, teacher_shape = (4, 3, 5, 6), (4, 2, 5, 6)
    token_axes = ()
    non_negative = True
    trains = ("align.weight", "denoiser.2.0.weight", "project.0.weight")


class TestDiffKDOnLogits(LossLaws):
    entry = "kdplug-vision:diffkd"
    settings: ClassVar = {"kernel_size": 1}
    shape, teacher_shape = (4, 3), (4, 2)
    token_axes = ()
    non_negative = True
    trains = ("align.weight", "project.0.weight")
