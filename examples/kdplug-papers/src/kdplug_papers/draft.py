"""EAGLE: a draft model for speculative decoding, which predicts the next features of the target model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear, smooth_l1_loss

from kdplug import LossSum, OutputsError, ShapeError
from kdplug_papers.checks import check_equal, check_setting
from kdplug_papers.tokens import check_tokens, counted


def eagle_draft(
    student_features: Tensor,
    teacher_features: Tensor,
    teacher_parameters: Mapping[str, Tensor],
    mask: Tensor | None = None,
    *,
    feature_weight: float = 1.0,
    token_weight: float = 0.1,
) -> LossSum:
    """EAGLE: smooth L1 distance of features plus soft cross-entropy of the tokens that the teacher's head reads off them.

    The draft's features s are to equal the teacher's last hidden states t, shifted by the adaptors so that place i of both
    means the same token. The loss of a token is ``feature_weight · mean_d smoothL1(s, t) − token_weight · Σ_v p_v ln q_v``
    with ``p = softmax(W t)`` and ``q = softmax(W s)``, mean over tokens. W is the teacher's head, which is not trained: the
    term reads it with ``reads_T: [lm_head:parameter.weight]``, and a bias after it.

    Settings: ``feature_weight`` and ``token_weight``, v_w and p_w of the authors.
    Shapes: features ``[batch, length, width]``; mask ``[batch, length]``; W ``[classes, width]``.
    Raises: ``OutputsError`` unless the term names a weight and at most a bias; ``ShapeError``; ``SettingError``.
    Source: Li et al. 2024, arXiv:2401.15077, section 4.2; SafeAILab/EAGLE, eagle/train/main.py.
    """
    for name, value in (("feature_weight", feature_weight), ("token_weight", token_weight)):
        check_setting(name, value, least=0)
    teacher = teacher_features.detach()
    check_tokens("eagle_draft", student_features, teacher)
    check_equal("eagle_draft", student_features, teacher)
    counts = counted("eagle_draft", mask, teacher)
    weight, bias = _head(teacher_parameters, teacher)
    outside = ~counts.unsqueeze(-1)
    own, other = (side.masked_fill(outside, 0.0) for side in (student_features, teacher))
    distance = smooth_l1_loss(own, other, reduction="none").mean(-1)
    log_q, p = linear(own, weight, bias).log_softmax(-1), linear(other, weight, bias).softmax(-1)
    loss = feature_weight * distance - token_weight * (p * log_q).sum(-1)
    return LossSum(loss.masked_fill(~counts, 0.0).sum(), counts.sum())


def _head(parameters: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of the teacher's head, in the precision of the features."""
    weight, *rest = (one.detach().to(features.dtype) for one in parameters.values())
    if len(rest) > 1:
        raise OutputsError(f"eagle_draft reads a head's weight and its bias, got {', '.join(parameters)}")
    bias = rest[0] if rest else None
    if (
        weight.dim() != 2
        or weight.shape[1] != features.shape[-1]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        shapes = ", ".join(f"{path} {list(one.shape)}" for path, one in parameters.items())
        raise ShapeError(
            f"eagle_draft: {shapes} is no head of features {list(features.shape)}: [classes, width], [classes]"
        )
    return weight, bias
