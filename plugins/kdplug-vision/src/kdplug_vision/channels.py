"""Relations between the channels of maps: NST, FSP, ICKD, and correlations of channels over a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdplug import LossSum, OutputsError, facts
from kdplug_vision.maps import check_batch, check_equal, check_maps, listed, to_smaller


def nst_map(student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]) -> LossSum:
    """Neuron selectivity transfer: squared maximum mean discrepancy of the channels, with the kernel ``(aᵀb)²``.

    ``mean k(s, s') + mean k(t, t') - 2 mean k(s, t)``: a channel is a vector over the positions with length 1, and means are
    over all pairs of channels; summed over the layers. The larger map is pooled to the smaller one. Usual weight: 50, on
    every stage. The numbers of channels may differ.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``, or lists of them; returns a sum over examples.
    Memory: ``B · min((H W)², max(C_s, C_t)²)`` elements.
    Raises: ``ShapeError`` for other shapes.
    Source: Huang and Wang 2017, arXiv:1707.01219; RepDistiller, distiller_zoo/NST.py.
    """
    students, teachers = listed(student_features), listed(teacher_features)
    layers = []
    for student, teacher in zip(students, teachers, strict=True):
        check_maps("nst_map", student, teacher)
        own, other = (normalize(one.flatten(2), dim=2) for one in to_smaller(student, teacher.detach()))
        layers.append(_discrepancy(own, other))
    return LossSum(sum(layers[1:], layers[0]), students[0].shape[0])


def _discrepancy(own: Tensor, other: Tensor) -> Tensor:
    """Return the sum over examples of the discrepancy of two sets of channels ``[B, C, positions]``.

    ``Σ (aᵀb)²`` over pairs of channels is the inner product of the Gram matrices over positions, so the whole is the squared
    distance of two such matrices. With many positions the Gram matrices over channels are the smaller ones.
    """
    widest, positions = max(own.shape[1], other.shape[1]), own.shape[2]
    if positions <= widest:
        difference = own.mT @ own / own.shape[1] - other.mT @ other / other.shape[1]
        return difference.square().sum()
    kernels = ((own, own, 1), (other, other, 1), (own, other, -2))
    return torch.stack([(one @ two.mT).square().mean((1, 2)).sum() * factor for one, two, factor in kernels]).sum()


@facts(shapes=["maps", "maps"])
def fsp_map(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> LossSum:
    """Squared error of the flow between consecutive layers: the mean over positions of products of their channels.

    ``Σ mean((G_s - G_t)²)``, ``G_i = F_i F_{i+1}ᵀ / (H W)``; of two layers the larger map is pooled to the smaller one.
    Student and teacher need the same numbers of channels. Usual weight: 50; the authors train with it alone first.

    Shapes: two lists of at least two maps, ``[B, C_i, H_i, W_i]``; returns a sum over examples.
    Raises: ``OutputsError`` for a single layer; ``ShapeError`` for other shapes.
    Source: Yim et al. 2017, CVPR; RepDistiller, distiller_zoo/FSP.py.
    """
    own, other = (_flows(listed(one)) for one in (student_features, [one.detach() for one in listed(teacher_features)]))
    total = []
    for student, teacher in zip(own, other, strict=True):
        check_equal("fsp_map", student, teacher, "numbers of channels")
        total.append((student - teacher).square().mean((1, 2)).sum())
    return LossSum(torch.stack(total).sum(), own[0].shape[0])


def _flows(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the flow matrix of each layer and the next, ``[B, C_{i+1}, C_i]``."""
    if len(maps) < 2:
        raise OutputsError(
            "fsp_map compares consecutive layers and got one. Give two or more: layer_S: [layer1, layer2], likewise layer_T"
        )
    check_maps("fsp_map", *maps)
    flows = []
    for lower, upper in itertools.pairwise(maps):
        first, second = (one.flatten(2) for one in to_smaller(lower, upper))
        flows.append(second @ first.mT / first.shape[2])
    return flows


class ICKD(nn.Module):
    """Inter-channel correlation: squared error of the Gram matrices of the channels, each row of which has length 1.

    ``Σ (Ĝ_s - Ĝ_t)² / (C B)``: ``G = F Fᵀ`` over the positions of one example, ``Ĝ`` its rows divided by their L2 norm. The
    student's map goes through a 1 × 1 convolution to the teacher's channels and batch norm; the teacher's map is used as it
    is. Usual weight: 2.5 (CIFAR-100), on the last map.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']``; returns a scalar, since batch norm compares the examples of a
    batch.
    Raises: ``ShapeError`` for other shapes.
    Source: Liu et al. 2021, ICCV; ADLab-AutoDrive/ICKD, Cifar100/distiller_zoo/ICKD.py.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the squared errors, divided by channels and examples."""
        check_maps("ickd", student_features, teacher_features)
        own, other = (_channel_gram(one) for one in (self.embed(student_features), teacher_features.detach()))
        return (own - other).square().sum() / (own.shape[1] * own.shape[0])


def _channel_gram(maps: Tensor) -> Tensor:
    channels = maps.flatten(2)
    return normalize(channels @ channels.mT, dim=2)


@facts(compares_items=True)
def pearson_kd(student_features: Tensor | Sequence[Tensor], teacher_features: Tensor | Sequence[Tensor]) -> Tensor:
    """Half the squared error of maps, each channel of which is standardised over the batch and the positions.

    ``Σ ½ mean((z(F_s) - z(F_t))²)`` over the layers, ``z`` with the unbiased standard deviation plus 1e-6. It is one minus
    the Pearson correlation of the channels, up to that constant. The larger map is pooled to the smaller one, and channels that
    differ in number need ``proj: [conv, auto, auto]``. Usual weight: 10 (RetinaNet), 6 (Faster R-CNN), on the levels of the feature pyramid.

    Shapes: maps ``[B, C, H, W]`` and ``[B, C, H', W']``, or lists of them; returns a scalar.
    Raises: ``ShapeError`` for other shapes.
    Source: Cao et al. 2022, arXiv:2207.02039; open-mmlab/mmrazor, pkd_loss.py.
    """
    layers = []
    for student, teacher in zip(listed(student_features), listed(teacher_features), strict=True):
        check_maps("pearson_kd", student, teacher)
        own, other = to_smaller(student, teacher.detach())
        check_equal("pearson_kd", own, other)
        layers.append((_standardized(own) - _standardized(other)).square().mean() / 2)
    return torch.stack(layers).sum()


def _standardized(maps: Tensor) -> Tensor:
    """Return maps whose channels have mean 0 and deviation 1 over batch and positions; one value alone becomes 0."""
    channels = maps.transpose(0, 1).flatten(1)
    centred = channels - channels.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(max(channels.shape[1] - 1, 1))
    standardized: Tensor = centred / (deviation + 1e-6)
    return standardized


class SRD(nn.Module):
    """Logarithm of the summed fourth powers of the differences of standardised features.

    ``ln Σ |z(W f_s + b) - z(f_t)|⁴`` over examples and features: ``z`` is batch norm without scale and shift, eps 1e-4. This is the
    loss of the authors' ImageNet code; ``srd_corr`` is that of their DeiT code. Usual weight: 2, on the pooled feature, with
    KL divergence at temperature 1 and cross-entropy. It may be negative.

    Shapes: ``[B, D_s]`` and ``[B, D_t]``, or maps, which are pooled; returns a scalar, since batch norm compares the examples
    of a batch.
    Raises: ``ShapeError`` if the batches differ.
    Source: Miles and Mikolajczyk 2024, AAAI, arXiv:2303.11098; roymiles/Simple-Recipe-Distillation, imagenet code.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, out_dim)
        self.norm_student = nn.BatchNorm1d(out_dim, eps=1e-4, affine=False)
        self.norm_teacher = nn.BatchNorm1d(out_dim, eps=1e-4, affine=False)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the logarithm; equal features give that of the smallest normal number of their type."""
        own, other = _both_pooled("srd", student_features, teacher_features)
        difference = self.norm_student(self.embed(own)) - self.norm_teacher(other)
        total: Tensor = difference.square().square().sum()
        return total.clamp(min=torch.finfo(total.dtype).tiny).log()


class SRDCorrelation(nn.Module):
    """Logarithm of the summed fourth powers of one minus the correlation of each feature with the teacher's.

    ``ln(Σ_d |ρ_d - 1|⁴ + 1e-5)``: ``ρ_d`` is the Pearson correlation over the batch of feature ``d`` of ``W f_s + b`` and of the
    teacher. A feature that is constant over the batch has correlation 0. Usual weight: 1, on the class token or the pooled
    feature. It may be negative.

    Shapes: ``[B, D_s]`` and ``[B, D_t]``, or maps, which are pooled; returns a scalar.
    Raises: ``ShapeError`` if the batches differ.
    Source: Miles and Mikolajczyk 2024, AAAI, arXiv:2303.11098; roymiles/Simple-Recipe-Distillation, deit/models.py.
    """

    axis = 1
    compares_items = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, out_dim)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the logarithm."""
        own, other = _both_pooled("srd_corr", student_features, teacher_features)
        own, other = (normalize(one - one.mean(0), dim=0) for one in (self.embed(own), other))
        correlation = (own * other).sum(0)
        return ((correlation - 1).square().square().sum() + 1e-5).log()


def _both_pooled(owner: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    check_batch(owner, student, teacher)
    own, other = (one.flatten(2).mean(2) if one.dim() > 2 else one for one in (student, teacher.detach()))
    return own, other
