"""Distil knowledge review: each teacher stage teaches the student's stage and all deeper ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, mse_loss

from kdplug_vision.maps import check_equal, check_maps, listed, widths


class ReviewKD(nn.Module):
    """Hierarchical squared error of the teacher's stages and the student's, which are fused from the deepest one upwards.

    The student's stage is mapped to ``mid`` channels and mixed, at each position, with the fused deeper stages (nearest
    neighbours enlarge them), by the sigmoid of a convolution of both; a 3 × 3 convolution with batch norm gives the
    teacher's channels. For each stage the loss is the mean squared error at full size, and pooled to 4 × 4, 2 × 2 and
    1 × 1 where that is smaller, with weights 1, ½, ¼ and ⅛ in this order over their sum. ``mid`` is at most 512 and at
    most the channels of the last stage. Usual weight: 0.6 to 8, rising from 0 over 20 epochs.

    Shapes: equal lists of maps from the first stage to the last, ``[B, C_s, H, W]`` and ``[B, C_t, H', W']`` (pooled
    features as ``[B, C, 1, 1]``); returns a scalar, since batch norm compares the examples of a batch.
    Raises: ``ShapeError`` for other shapes.
    Source: Chen et al. 2021, arXiv:2104.09044; constants of dvlab-research/ReviewKD.
    """

    axis = 1

    def __init__(self, in_dim: int | Sequence[int], out_dim: int | Sequence[int]) -> None:
        super().__init__()
        in_dims, out_dims = widths(in_dim), widths(out_dim)
        mid = min(512, in_dims[-1])
        self.reduce = nn.ModuleList(_convolution(width, mid, 1) for width in in_dims)
        self.mix = nn.ModuleList(nn.Conv2d(2 * mid, 2, 1) for _ in in_dims[:-1])
        self.expand = nn.ModuleList(_convolution(mid, width, 3) for width in out_dims)

    def forward(
        self, student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]
    ) -> Tensor:
        """Return the sum over stages."""
        students, teachers = listed(student_features), listed(teacher_features)
        check_maps("reviewkd", *students, *teachers)
        fused: Tensor | None = None
        losses = []
        for stage in reversed(range(len(students))):
            own: Tensor = self.reduce[stage](students[stage])
            if fused is not None:
                deeper = interpolate(fused, own.shape[2:], mode="nearest")
                shares = self.mix[stage](torch.cat([own, deeper], dim=1)).sigmoid()
                own = own * shares[:, :1] + deeper * shares[:, 1:]
            teacher = teachers[stage].detach()
            fused = own if own.shape[2:] == teacher.shape[2:] else interpolate(own, teacher.shape[2:], mode="nearest")
            losses.append(_hierarchical(self.expand[stage](fused), teacher))
        return torch.stack(losses).sum()


def _convolution(in_dim: int, out_dim: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_dim, out_dim, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_dim))


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared errors of the maps and of their pooled versions, weighted."""
    check_equal("reviewkd", student, teacher)
    loss, weight, weights = mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= min(student.shape[2:]):
            continue
        weight /= 2
        weights += weight
        loss = loss + weight * mse_loss(adaptive_avg_pool2d(student, size), adaptive_avg_pool2d(teacher, size))
    return loss / weights
