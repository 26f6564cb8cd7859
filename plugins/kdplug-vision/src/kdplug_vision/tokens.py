"""Vision transformers: patch tokens on a grid, a queue of the teacher's features, and DeiT's distillation token."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from kdplug import LossSum, ShapeError, mean_over_items
from kdplug_vision.maps import check_batch, check_equal, check_setting


@mean_over_items
def deit_hard(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the distillation head with the teacher's most likely class, in nats.

    The head of the distillation token is a separate head: ``head_S: 1`` of a student whose ``logits`` are those of the
    class token and of the distillation token. The authors add half of it to half of the cross-entropy of the class token:
    weight 0.5, ``hard_label_weight: 0.5``.

    Shapes: ``[*items, C]``; returns a mean over items.
    Source: Touvron et al. 2021, arXiv:2012.12877; facebookresearch/deit, losses.py.
    """
    classes = student_logits.shape[-1]
    return cross_entropy(student_logits.reshape(-1, classes), teacher_logits.detach().reshape(-1, classes).argmax(1))


def deit_soft(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    *,
    divisor: Literal["items_and_classes", "items"] = "items_and_classes",
) -> LossSum:
    """KL divergence of the distillation head from the teacher, as DeiT's code divides it.

    ``T² Σ p ln(p / q) / (N C)`` in nats for ``N`` items and ``C`` classes: the authors' code divides by the number of classes
    too, which the formula of the paper does not. With ``divisor: items`` it is the paper's formula, which timm uses. The
    authors weight it 0.5 at temperature 1.

    Settings: ``divisor``, what the sum is divided by.

    Shapes: ``[*items, C]``; returns a sum over items.
    Source: Touvron et al. 2021, arXiv:2012.12877; facebookresearch/deit, losses.py.
    """
    check_equal("deit_soft", student_logits, teacher_logits)
    each = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature
    log_q, log_p = ((one / each).log_softmax(-1) for one in (student_logits, teacher_logits.detach()))
    p = log_p.exp()
    divergence = (torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1) * temperature**2).sum()
    classes = student_logits.shape[-1] if divisor == "items_and_classes" else 1
    return LossSum(divergence, math.prod(student_logits.shape[:-1]) * classes)


def vit_tokens(
    student_features: Tensor, teacher_features: Tensor, *, prefix_student: int = 1, prefix_teacher: int = 1
) -> LossSum:
    """Squared error of patch tokens, with the student's grid interpolated to the teacher's.

    ``mean((F_s - F_t)²)`` over positions and channels, without normalisation. Tokens ``[B, L, D]`` begin with a class token
    and perhaps registers, which ``prefix_student`` and ``prefix_teacher`` count and which are left out; the rest is a square
    grid. Maps ``[B, D, H, W]`` are used whole. Bilinear interpolation changes only the student. For widths that differ,
    project the student's: ``proj: [linear, auto, auto]``, or ``conv`` for maps. Usual weight: 1.

    Settings: ``prefix_student`` and ``prefix_teacher``, numbers of tokens before the patches.

    Shapes: tokens or maps with the same channels; returns a sum over examples.
    Raises: ``SettingError`` for a negative prefix; ``ShapeError`` for other shapes, or tokens that are no square grid.
    Source: lightly-ai/lightly-train, distillationv2; the authors concatenate the last two blocks of the teacher.
    """
    check_setting("prefix_student", prefix_student, least=0)
    check_setting("prefix_teacher", prefix_teacher, least=0)
    student = _as_grid("student", student_features, prefix_student)
    teacher = _as_grid("teacher", teacher_features.detach(), prefix_teacher)
    check_batch("vit_tokens", student, teacher)
    if student.shape[2:] != teacher.shape[2:]:
        student = interpolate(student, teacher.shape[2:], mode="bilinear", align_corners=False)
    check_equal("vit_tokens", student, teacher)
    return LossSum((student - teacher).square().flatten(1).mean(1).sum(), student.shape[0])


def _as_grid(side: str, features: Tensor, prefix: int) -> Tensor:
    """Return tokens as a map ``[B, D, H, W]``."""
    if features.dim() == 4:
        return features
    if features.dim() != 3:
        raise ShapeError(f"vit_tokens compares tokens [batch, length, width] or maps, got {list(features.shape)}")
    tokens = features[:, prefix:]
    size = math.isqrt(tokens.shape[1])
    if size == 0 or size**2 != tokens.shape[1]:
        raise ShapeError(
            f"vit_tokens needs a square grid of tokens, but the {side}'s {features.shape[1]} tokens without prefix_{side} = "
            f"{prefix} are {tokens.shape[1]}. Set prefix_{side} to the number of class tokens and registers"
        )
    return tokens.mT.reshape(tokens.shape[0], -1, size, size)


_QUEUES = (
    (50, 16),
    (100, 32),
    (250, 64),
    (500, 128),
    (1000, 256),
    (2000, 512),
    (4000, 1024),
    (10_000, 2048),
    (20_000, 4096),
)
_LONGEST_QUEUE = 8192


class LightlyV1(nn.Module):
    """KL divergence of the similarities to a queue of teacher features, in nats, as in LightlyTrain's first distillation.

    ``KL(softmax(t Qᵀ / tau) ‖ softmax(s Qᵀ / tau))``: ``t`` and ``s`` are pooled features of length 1, the student's after a linear
    layer to the teacher's width; the rows of ``Q`` are the teacher's features of the latest examples, those of this batch
    first. In training each call moves the queue. ``queue`` is by default 16 to 8192 by the number of examples. Each process
    has its own queue. Usual weight: 1; the authors mix images up, and use no labels.

    Settings: ``queue``, length of the queue, by default from the number of examples; ``tau``, temperature.

    Shapes: ``[B, D_s]`` and ``[B, D_t]``, or ``[B, C, 1, 1]``; returns a sum over examples.
    Raises: ``SettingError`` for a setting out of range, or a queue as long as the data; ``ShapeError`` if the batches differ.
    Source: lightly-ai/lightly-train, src/lightly_train/_methods/distillation.
    """

    axis = 1  # of [B, D] and of [B, C, 1, 1]
    compares_items = True

    teacher_queue: Tensor

    def __init__(
        self, in_dim: int, out_dim: int, num_examples: int, *, queue: int | None = None, tau: float = 0.07
    ) -> None:
        super().__init__()
        check_setting("tau", tau, above=0)
        if queue is None:
            queue = next((length for bound, length in _QUEUES if num_examples < bound), _LONGEST_QUEUE)
        else:
            check_setting("queue", queue, least=1, below=num_examples)
        self.tau = tau
        self.project = nn.Linear(in_dim, out_dim)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        self.register_buffer("teacher_queue", torch.zeros(queue, out_dim))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Return the divergences of all examples; in training, move the queue first."""
        check_batch("lightly_v1", student_features, teacher_features)
        teacher = normalize(teacher_features.detach().flatten(1))
        student = normalize(self.project(student_features.flatten(1)))
        queue = torch.cat([teacher, self.teacher_queue])[: len(self.teacher_queue)]
        if self.training:
            self.teacher_queue.copy_(queue)
        log_q, log_p = ((one @ queue.T / self.tau).log_softmax(1) for one in (student, teacher))
        return LossSum((log_p.exp() * (log_p - log_q)).sum(), len(student))
