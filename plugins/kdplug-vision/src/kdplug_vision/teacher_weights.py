"""Methods that use parameters of the teacher: SRRL its classifier, OFD the batch norms before its activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from kdplug import ShapeError
from kdplug_vision.maps import check_batch, check_equal, check_maps, check_setting, listed, widths


class SRRL(nn.Module):
    """Squared errors of the pooled features, and of the teacher's logits and those of its classifier on the student's.

    ``mean((p(r(F_s)) - p(F_t))²) + regression · mean((W_t p(r(F_s)) + b_t - z_t)²)``: ``r`` is a 1 × 1 convolution with
    batch norm and ReLU, ``p`` pools height and width, ``z_t`` are the teacher's logits. ``reads_T`` names the weight of the
    classifier, then its bias if it has one. Usual weight: 1 with labels.

    Settings: ``regression``, factor of the error of the logits.

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H', W']`` or pooled features ``[B, C]``; returns a scalar, since batch
    norm compares the examples of a batch.
    Raises: ``SettingError`` if ``regression < 0``; ``ShapeError`` for other shapes, or parameters that do not give logits.
    Source: Yang et al. 2021, ICLR; constants of jingyang2017/KD_SRRL.
    """

    axis = 1

    def __init__(self, in_dim: int, out_dim: int, *, regression: float = 1.0) -> None:
        super().__init__()
        check_setting("regression", regression, least=0)
        self.regression = regression
        self.connector = nn.Sequential(*connector(in_dim, out_dim), nn.ReLU())

    def forward(
        self,
        student_features: Tensor,
        teacher_features: Tensor,
        teacher_logits: Tensor,
        teacher_parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the sum of both errors."""
        student, teacher = (_as_map(one) for one in (student_features, teacher_features.detach()))
        check_batch("srrl", student, teacher, teacher_logits)
        own, other = (one.mean(dim=(2, 3)) for one in (self.connector(student), teacher))
        check_equal("srrl", own, other)
        parameters = list(teacher_parameters.values())
        if [one.shape for one in parameters] not in _classifier_shapes(teacher_logits.shape[-1], other.shape[1]):
            raise ShapeError(
                "srrl needs the weight [classes, channels] of the teacher's classifier, and its bias if it has one, as "
                f"reads_T; got {_shapes(teacher_parameters)}"
            )
        regressed = linear(own, *parameters)
        return mse_loss(own, other) + self.regression * mse_loss(regressed, teacher_logits.detach())


class OFD(nn.Module):
    """Squared error of the maps before the activation, where the teacher is active or the student exceeds its margin.

    ``Σ_i 2^{i-n+1} Σ (c(F_s) - t)² [c(F_s) > t or t > 0] / B`` with ``t = max(F_t, m)``, for stages ``i`` from 0 to
    ``n - 1``: ``c`` is a 1 × 1 convolution with batch norm. ``m`` is, for each channel, the mean of the negative values of a
    normal distribution with the shift and scale of the teacher's batch norm; -3 times the scale where fewer than one value
    in 1000 is negative. ``reads_T`` names the weight and the bias of the batch norm of each stage, in the order of the
    stages. Usual weight: 1e-3 (CIFAR), 1e-4 (ImageNet), 1e-5 (detection and segmentation).

    Shapes: maps ``[B, C_s, H, W]`` and ``[B, C_t, H, W]``, or equal lists of them, of the modules before the activations;
    returns a scalar, since batch norm compares the examples of a batch.
    Raises: ``ShapeError`` for other shapes, or parameters that are not those of one batch norm for each stage.
    Source: Heo et al. 2019, arXiv:1904.01866; constants of clovaai/overhaul-distillation.
    """

    axis = 1

    def __init__(self, in_dim: int | Sequence[int], out_dim: int | Sequence[int]) -> None:
        super().__init__()
        in_dims, out_dims = widths(in_dim), widths(out_dim)
        self.connectors = nn.ModuleList(
            nn.Sequential(*connector(*each)) for each in zip(in_dims, out_dims, strict=True)
        )

    def forward(
        self,
        student_features: Tensor | Sequence[Tensor],
        teacher_features: Tensor | Sequence[Tensor],
        teacher_parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the sum over stages, divided by the number of examples."""
        students, teachers = listed(student_features), listed(teacher_features)
        check_maps("ofd", *students, *teachers)
        stages = []
        for stage, (scale, shift) in enumerate(_batch_norms(teacher_parameters, teachers)):
            student = self.connectors[stage](students[stage])
            check_equal("ofd", student, teachers[stage])
            target = teachers[stage].detach().maximum(_margin(scale, shift).view(-1, 1, 1))
            counts = (student > target) | (target > 0)
            stages.append((student - target).square().where(counts, 0).sum() * 2.0 ** (stage - len(students) + 1))
        return torch.stack(stages).sum() / students[0].shape[0]


def connector(in_dim: int, out_dim: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a 1 × 1 convolution, drawn for a ReLU after it, and batch norm."""
    convolution = nn.Conv2d(in_dim, out_dim, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / out_dim))
    return convolution, nn.BatchNorm2d(out_dim)


def _classifier_shapes(classes: int, channels: int) -> tuple[list[tuple[int, ...]], ...]:
    return [(classes, channels)], [(classes, channels), (classes,)]


def _as_map(features: Tensor) -> Tensor:
    if features.dim() not in (2, 4):
        raise ShapeError(f"srrl compares maps or pooled features [batch, width], got {list(features.shape)}")
    return features if features.dim() == 4 else features[:, :, None, None]


def _batch_norms(parameters: Mapping[str, Tensor], teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of the batch norm of each stage. Raises: ``ShapeError`` for others."""
    found = list(parameters.values())
    in_order = all(path.endswith((".weight", ".bias")[place % 2]) for place, path in enumerate(parameters))
    if not in_order or [one.shape for one in found] != [(one.shape[1],) for one in teachers for _ in range(2)]:
        raise ShapeError(
            f"ofd needs weight, then bias, of the batch norm of each of the {len(teachers)} stages as reads_T; got "
            f"{_shapes(parameters)}"
        )
    return list(zip(found[::2], found[1::2], strict=True))


def _margin(scale: Tensor, shift: Tensor) -> Tensor:
    """Return the mean of the negative values of normal distributions."""
    deviation = scale.abs()
    height = shift / deviation
    negative = torch.special.ndtr(-height)
    density = (-height.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > 1e-3, shift - deviation * density / negative, -3 * deviation)


def _shapes(parameters: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{path} {list(one.shape)}" for path, one in parameters.items()) or "none"
