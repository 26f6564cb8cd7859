"""Students that teach themselves: a virtual teacher made of labels, and a moving average of the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from kdplug import LossSum, SettingError, ShapeError, facts


@facts(reads_teacher=False)
def tf_kd(
    student_logits: Tensor, labels: Tensor, temperature: float | Tensor = 20.0, *, correct: float = 0.99
) -> LossSum:
    """KL divergence from a virtual teacher that gives the label the probability ``correct``, and the rest to all classes.

    ``KL(softmax(u / T) || softmax(z / T))`` with ``u = correct`` at the label and ``(1 - correct) / (K - 1)`` elsewhere; a mean
    over items. No teacher runs. Their code leaves the student's logits ``z`` unsoftened and averages over classes too.

    Shapes: logits ``[*items, classes]``, labels ``[*items]``; items with a negative label are left out.
    Source: Yuan et al. 2019, arXiv:1909.11723, Tf-KD_reg, equations 8 and 9.
    """
    if not 0.0 < correct <= 1.0:
        raise SettingError(f"must be in (0, 1], got {correct!r}", field="correct")
    heat = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature
    counted = labels >= 0
    other = (1 - correct) / (student_logits.shape[-1] - 1)
    virtual = torch.full_like(student_logits, other).scatter_(-1, labels.clamp_min(0).unsqueeze(-1), correct)
    each = kl_div(log_softmax(student_logits / heat, -1), softmax(virtual / heat, -1), reduction="none").sum(-1)
    return LossSum(torch.where(counted, each, 0.0).sum(), counted.sum())


def mean_teacher(student_logits: Tensor, teacher_logits: Tensor) -> LossSum:
    """Squared error of the probabilities, the consistency cost of Mean Teacher: use it with ``teacher_update: ema``.

    Shapes: logits ``[*items, classes]``; the error is summed over classes and divided by their number.
    Source: Tarvainen and Valpola 2017, arXiv:1703.01780, section 2, with the division of their code.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"differ in shape: {list(student_logits.shape)} and {list(teacher_logits.shape)}", field="logits"
        )
    error = softmax(student_logits, -1) - softmax(teacher_logits, -1).detach()
    return LossSum(error.square().mean(-1).sum(), student_logits[..., 0].numel())


def sigmoid_rampup(progress: float, *, share: float = 0.3) -> float:
    """Factor that rises from ``exp(-5)`` to 1 over the first ``share`` of the run: ``exp(-5 · (1 - progress / share)²)``.

    Source: Laine and Aila 2016, arXiv:1610.02242, section 3.1, as Mean Teacher uses it for the consistency cost.
    """
    return math.exp(-5.0 * (1.0 - min(progress / share, 1.0)) ** 2)
