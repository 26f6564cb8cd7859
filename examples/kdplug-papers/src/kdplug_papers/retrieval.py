"""Scores of one query's candidates, as logits ``[queries, candidates]``: MarginMSE and list-wise KL divergence."""

from __future__ import annotations

from torch import Tensor

from kdplug import LossSum, ShapeError
from kdplug_papers.checks import check_equal, check_setting
from kdplug_papers.tokens import per_item


def margin_mse(student_logits: Tensor, teacher_logits: Tensor) -> LossSum:
    """MarginMSE: squared difference of margins ``score(query, positive) − score(query, negative)``, mean over negatives.

    The first candidate is the positive. Scores are used as they are: the authors take dot products of embeddings. If
    queries have different numbers of candidates, fill up with ``-inf`` in the teacher's scores; these are ignored.

    Shapes: scores ``[*queries, candidates]``, at least two candidates.
    Raises: ``ShapeError``.
    Source: Hofstätter et al. 2020, arXiv:2010.02666, equation 2; several negatives as in sentence-transformers,
    ``MarginMSELoss``.
    """
    _check("margin_mse", student_logits, teacher_logits)
    exists = teacher_logits > float("-inf")
    own, other = (side.masked_fill(~exists, 0.0) for side in (student_logits, teacher_logits.detach()))
    difference = (own[..., :1] - own[..., 1:]) - (other[..., :1] - other[..., 1:])
    compared = exists[..., :1] & exists[..., 1:]
    return LossSum(difference.masked_fill(~compared, 0.0).square().sum(), compared.sum())


def score_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    teacher_temperature: float | None = None,
) -> LossSum:
    """List-wise ``T² KL(softmax(t / T_t)‖softmax(s / T))`` of candidate scores, in nats, mean over queries.

    A candidate that the teacher gives ``-inf`` is left out on both sides. Above a spread of about 100 T_t, the softmax of
    a teacher in float32 is 0 for the lowest scores, whose order is then lost: choose T_t by the teacher's scale.

    Settings: ``teacher_temperature``, T_t, is the student's T if not given. T² is the student's.
    Shapes: scores ``[*queries, candidates]``, at least two candidates; temperature a number or ``[*queries]``.
    Raises: ``ShapeError``; ``SettingError``.
    Source: Lin et al. 2020, arXiv:2010.11386; temperatures as in sentence-transformers, ``DistillKLDivLoss``.
    """
    _check("score_kl", student_logits, teacher_logits)
    if teacher_temperature is not None:
        check_setting("teacher_temperature", teacher_temperature, above=0)
    degree = per_item(temperature)
    missing = teacher_logits == float("-inf")
    log_q = (student_logits / degree).masked_fill(missing, float("-inf")).log_softmax(-1)
    log_p = (teacher_logits.detach() / (degree if teacher_temperature is None else teacher_temperature)).log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q).masked_fill(missing, 0.0)).sum(-1, keepdim=True)
    return LossSum((divergence * degree**2).sum(), log_q.shape[:-1].numel())


def _check(owner: str, student: Tensor, teacher: Tensor) -> None:
    check_equal(owner, student, teacher)
    if student.shape[-1] < 2:
        raise ShapeError(f"{owner} compares at least two candidates for a query, got scores {list(student.shape)}")
