"""Cross-entropy, estimated from classes that are sampled from the teacher's distribution."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum, OutputsError, SparseLogits, facts
from kdplug_logits.divergence import tempered, times_squared
from kdplug_logits.sparse import read_student


def seed_of(seed: int, draw_seed: int) -> int:
    """Derive one seed for each pair, so that runs that differ in either seed make different draws."""
    return (seed * 0x9E3779B97F4A7C15 + draw_seed) % 2**63


def draw(teacher: Tensor, draws: int, sharpness: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw classes from ``r ∝ p^sharpness``; return them with their weights ``p / (r · draws)``.

    ``Σ weight · f(class)`` is then an unbiased estimate of ``Σ p f``. So is its gradient, for which ``r`` is a constant.
    Global generators are not used.

    Shapes: log-probabilities ``[*items, classes]`` to ``[*items, draws]`` each.
    """
    rows = teacher.reshape(-1, teacher.shape[-1])
    with torch.no_grad():
        proposal = rows if sharpness == 1 else (rows * sharpness).log_softmax(dim=-1)
        generator = torch.Generator(device=rows.device).manual_seed(seed)
        chances = proposal.exp().nan_to_num_(nan=1.0)  # an item without any class keeps nan weights
        ids = torch.multinomial(chances, draws, replacement=True, generator=generator)
        chosen = proposal.gather(-1, ids)
    weights = (rows.gather(-1, ids) - chosen).exp() / draws
    return ids.view(*teacher.shape[:-1], draws), weights.view(*teacher.shape[:-1], draws)


def sampled_per_item(student: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return ``−Σ weight · log q(class)`` of log-probabilities ``[*items, classes]``, in nats, ``[*items]``.

    A class of weight 0 adds nothing.
    """
    return -(weights * torch.where(weights == 0, 0.0, student.gather(-1, ids))).sum(dim=-1)


def _from_sample(student: Tensor, teacher: SparseLogits, temperature: Tensor | float, *, t2: bool) -> LossSum:
    if teacher.weights is None:
        raise OutputsError(
            "sampled: the teacher's SparseLogits have no weights, so they are not a sample. Use the loss 'topk'"
        )
    log_probs = read_student("sampled", student, teacher, temperature)
    values = sampled_per_item(log_probs, teacher.ids, teacher.weights.to(log_probs.dtype))
    return LossSum((times_squared(values, teacher.temperature) if t2 else values).sum(), values.numel())


@facts(random=True)
def sampled(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    temperature: Tensor | float = 1.0,
    teacher_sparse: SparseLogits | None = None,
    draw_seed: int = 0,
    *,
    draws: Annotated[int, Field(ge=1, le=1 << 16)] = 50,
    sharpness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0,
    t2: bool = True,
) -> LossSum:
    """Cross-entropy ``−T² Σ w log q`` of the softened student under classes drawn from the teacher, in nats, mean over items.

    Each item's ``draws`` classes are drawn, with replacement, from ``r ∝ p^sharpness``, and weighted by ``p / r``:
    value and gradient are, on average, those of the cross-entropy under the whole teacher, whereas using only the
    largest classes would be biased. That holds for the gradient of a trained temperature too, which therefore differs
    from the finite difference of one draw. A class that the teacher rules out (``-inf``) is never drawn.

    If the teacher is a cache of samples, its draws and weights are used: ``draws``, ``sharpness`` and ``seed`` are then
    ignored, and the temperature must be that of the cache.

    The draws depend only on ``seed`` and ``draw_seed``. The objective gives each step, micro-batch, head, chunk and
    process its own ``draw_seed``, and the same one after a resume.

    Settings: ``draws``, the number of classes drawn per item; ``sharpness``, above 1 towards the likely classes and
    below 1 towards the unlikely; ``seed`` of the draws; ``t2`` multiplies by the squared temperature.
    Relations: on average ``ce`` of kdplug-presets with ``t2: true``: ``kl`` plus the teacher's entropy.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive or not that of the
    cache; ``OutputsError`` if the cache does not contain samples.
    Source: Anshumann et al. 2025 (RS-KD), arXiv:2503.16870, which keeps about 12 distinct classes.
    """
    if teacher_sparse is not None:
        return _from_sample(student_logits, teacher_sparse, temperature, t2=t2)
    student, teacher, temperature = tempered("sampled", student_logits, teacher_logits, temperature)
    ids, weights = draw(teacher.log_softmax(dim=-1), draws, sharpness, seed_of(seed, draw_seed))
    values = sampled_per_item(student.log_softmax(dim=-1), ids, weights)
    return LossSum((times_squared(values, temperature) if t2 else values).sum(), values.numel())
