"""Regress the teacher's maps from the student's: FitNets, variational information distillation, masked generation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kdplug import LossSum
from kdplug_vision.maps import check_equal, check_maps, check_setting, to_smaller

_LEAST_VARIANCE = 1e-5


class FitNet(nn.Module):
    """Squared error of the teacher's map and a regressor of the student's: a convolution, batch norm and ReLU.

    ``mean((r(F_s) - F_t)²)``, over all elements. The convolution has a 3 × 3 kernel; ``stride: 2`` is for a student whose
    map is twice as large as the teacher's. If the sizes still differ, the larger map is pooled to the smaller one. Usual
    weight: 100, on the second stage.

    Settings: ``stride`` of the convolution.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a scalar, since batch norm compares the examples of a
    batch.
    Raises: ``ShapeError`` for other shapes.
    Source: Romero et al. 2015, arXiv:1412.6550; constants of RepDistiller.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int, *, stride: Literal[1, 2] = 1) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=stride, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU()
        )

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the mean squared error."""
        check_maps("fitnet", student_features, teacher_features)
        regressed, teacher = to_smaller(self.regressor(student_features), teacher_features.detach())
        check_equal("fitnet", regressed, teacher)
        return (regressed - teacher).square().mean()


class VID(nn.Module):
    """Negative log-likelihood of the teacher's map under a Gaussian, whose mean is regressed from the student's map.

    ``½ mean((μ(F_s) - F_t)² / σ² + ln σ²)`` in nats, without the constant ``½ ln 2π``. ``μ`` is three 1 × 1 convolutions
    with ReLU between them; ``σ² = softplus(a) + 1e-5`` for each channel of the teacher, ``a`` trained, ``σ²`` 5 at first.
    The larger map is pooled to the smaller one. Usual weight: 1, on each stage. It may be negative.

    Settings: ``variance`` at the start.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a sum over elements.
    Raises: ``SettingError`` if ``variance <= 1e-5``; ``ShapeError`` for other shapes.
    Source: Ahn et al. 2019, arXiv:1904.05835, equation 5; constants of RepDistiller.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int, *, variance: float = 5.0) -> None:
        super().__init__()
        check_setting("variance", variance, above=_LEAST_VARIANCE)
        self.mean = nn.Sequential(
            nn.Conv2d(in_dim, out_dim, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_dim, out_dim, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_dim, out_dim, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((out_dim,), math.log(math.expm1(variance - _LEAST_VARIANCE))))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Return the negative log-likelihood of all elements."""
        check_maps("vid", student_features, teacher_features)
        student, teacher = to_smaller(student_features, teacher_features.detach())
        variance = (softplus(self.scale) + _LEAST_VARIANCE).view(1, -1, 1, 1)
        mean: Tensor = self.mean(student)
        check_equal("vid", mean, teacher)
        values = ((mean - teacher).square() / variance + variance.log()) / 2
        return LossSum(values.sum(), values.numel())


class MGD(nn.Module):
    """Squared error of the teacher's map and one generated from the student's map, of which a part is masked out.

    ``Σ (g(m ⊙ a(F_s)) - F_t)² / B``: ``a`` is a 1 × 1 convolution if the numbers of channels differ, ``g`` two 3 × 3
    convolutions with ReLU between them. ``m`` is 0 for a share ``masked`` of the channels (classification) or of the
    positions (dense prediction), drawn for each example. ``masked`` is λ of the paper: other papers call the kept share λ.
    Usual weight and ``masked``: 7e-5 and 0.15 for classification; with ``masks: positions`` 2e-5 and 0.65 for RetinaNet,
    5e-7 and 0.45 for Mask R-CNN.

    The larger map is pooled to the smaller one.

    Settings: ``masked``, share that is masked out; ``masks``, what is masked.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a sum over examples.
    Raises: ``SettingError`` unless ``0 <= masked < 1``; ``ShapeError`` for other shapes.
    Source: Yang et al. 2022, arXiv:2205.01529; constants of yzd-v/MGD.
    """

    axis = 1
    random = own_parameters = True

    def __init__(
        self, in_dim: int, out_dim: int, *, masked: float = 0.15, masks: Literal["channels", "positions"] = "channels"
    ) -> None:
        super().__init__()
        check_setting("masked", masked, least=0, below=1)
        self.masked, self.masks = masked, masks
        self.align = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(out_dim, out_dim, 3, padding=1), nn.ReLU(), nn.Conv2d(out_dim, out_dim, 3, padding=1)
        )

    def forward(self, student_features: Tensor, teacher_features: Tensor, draw_seed: int) -> LossSum:
        """Return the squared errors summed over elements, and the number of examples."""
        check_maps("mgd", student_features, teacher_features)
        aligned, teacher = to_smaller(self.align(student_features), teacher_features.detach())
        check_equal("mgd", aligned, teacher)
        batch, channels, height, width = aligned.shape
        shape = (batch, channels, 1, 1) if self.masks == "channels" else (batch, 1, height, width)
        generator = torch.Generator(device=aligned.device).manual_seed(draw_seed)
        kept = torch.rand(shape, generator=generator, device=aligned.device) >= self.masked
        generated = self.generation(aligned * kept)
        return LossSum((generated - teacher).square().sum(), batch)
