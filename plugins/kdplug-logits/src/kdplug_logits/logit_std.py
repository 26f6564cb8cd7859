"""KL divergence of standardized logits."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.divergence import over_temperature, read_temperature, tempered, total
from kdplug_logits.kl import kl_terms
from kdplug_logits.shape import require_three_classes


def standardized(logits: Tensor, eps: float) -> Tensor:
    """Return ``(z − mean) / (deviation + eps)`` over the classes that are not ``-inf``; ``-inf`` stays.

    The deviation is the sample's (divided by one less than the number of classes). If all classes are equal it is 0,
    with a gradient of 0.

    Shapes: ``[*items, classes]`` to the same.
    """
    possible = logits > -torch.inf
    number = possible.sum(dim=-1, keepdim=True)
    mean = torch.where(possible, logits, 0.0).sum(dim=-1, keepdim=True) / number.clamp(min=1)
    apart = torch.where(possible, logits - mean, 0.0)
    variance = apart.square().sum(dim=-1, keepdim=True) / (number - 1).clamp(min=1)
    deviation = variance.clamp(min=torch.finfo(logits.dtype).tiny).sqrt()
    return torch.where(possible, apart / (deviation + eps), -torch.inf)


def logit_std(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-7,
    t2: bool = True,
) -> LossSum:
    """KL divergence ``T² KL(p‖q)`` after both sides' logits were standardized, in nats, mean over items.

    ``z ← (z − mean) / (deviation + eps)`` per item, then softened and compared as in ``kl``: the student need not match
    the teacher's logits in scale, only in order and proportion. Shifting or scaling either side changes nothing.

    A class that is ruled out (``-inf``) is excluded from mean and deviation, and otherwise treated as in ``kl``. Two
    logits always become the same two numbers, so three classes are needed, and an item with two allowed classes gets no
    gradient.

    Settings: ``eps`` is added to the deviation; ``t2`` multiplies by the squared temperature. The authors use
    temperature 2 and a weight of 9.
    Relations: ``kl`` at a separate temperature for each item and side: ``T · deviation``.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ or there are fewer than three classes; ``SettingError`` if the temperature
    is not positive.
    Source: Sun et al. 2024, arXiv:2403.01427; deviation and eps as in sunshangquan/logit-standardization-KD,
    mdistiller/distillers/KD.py.
    """
    temperature = read_temperature("logit_std", temperature, student_logits)
    student, teacher, _ = tempered("logit_std", student_logits, teacher_logits, 1.0)
    require_three_classes("logit_std", student, "two logits are always standardized to the same numbers. Use kl")
    own, theirs = (over_temperature(standardized(side, eps), temperature) for side in (student, teacher))
    terms = kl_terms(own.log_softmax(dim=-1), theirs.log_softmax(dim=-1))
    return LossSum(total(terms, temperature, t2=t2), student.shape[:-1].numel())
