"""TextBrewer's loss functions, under their original names. Each call looks the loss up in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdplug.host.textbrewer_maps import KD_LOSS_MAP, MATCH_LOSS_MAP

__all__ = [
    "att_ce_loss",
    "att_ce_mean_loss",
    "att_mse_loss",
    "att_mse_sum_loss",
    "cos_loss",
    "fsp_loss",
    "hid_mse_loss",
    "kd_ce_loss",
    "kd_mse_loss",
    "mmd_loss",
    "pkd_loss",
]


def kd_mse_loss(logits_S: Tensor, logits_T: Tensor, temperature: Tensor | float = 1) -> Any:
    """Return the kd loss ``mse``. Shapes: logits ``[*items, classes]``; temperature a number or ``[*items]``."""
    return KD_LOSS_MAP["mse"](logits_S, logits_T, temperature)


def kd_ce_loss(logits_S: Tensor, logits_T: Tensor, temperature: Tensor | float = 1) -> Any:
    """Return the kd loss ``ce``. Shapes: logits ``[*items, classes]``; temperature a number or ``[*items]``."""
    return KD_LOSS_MAP["ce"](logits_S, logits_T, temperature)


def att_mse_loss(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``attention_mse``. Shapes: ``[batch, heads, length, length]``; mask ``[batch, length]``."""
    return MATCH_LOSS_MAP["attention_mse"](attention_S, attention_T, mask)


def att_mse_sum_loss(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``attention_mse_sum``. Shapes as in ``att_mse_loss``, heads optional."""
    return MATCH_LOSS_MAP["attention_mse_sum"](attention_S, attention_T, mask)


def att_ce_loss(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``attention_ce``. Shapes as in ``att_mse_loss``."""
    return MATCH_LOSS_MAP["attention_ce"](attention_S, attention_T, mask)


def att_ce_mean_loss(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``attention_ce_mean``. Shapes as in ``att_mse_loss``, heads optional."""
    return MATCH_LOSS_MAP["attention_ce_mean"](attention_S, attention_T, mask)


def hid_mse_loss(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``hidden_mse``. Shapes: ``[batch, length, width]``; mask ``[batch, length]``."""
    return MATCH_LOSS_MAP["hidden_mse"](state_S, state_T, mask)


def cos_loss(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``cos``. Shapes as in ``hid_mse_loss``."""
    return MATCH_LOSS_MAP["cos"](state_S, state_T, mask)


def pkd_loss(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None) -> Any:
    """Return the match loss ``pkd``.

    Shapes: ``[batch, length, width]`` or ``[batch, width]``; mask ``[batch, length]``.
    """
    return MATCH_LOSS_MAP["pkd"](state_S, state_T, mask)


def fsp_loss(state_S: Sequence[Tensor], state_T: Sequence[Tensor], mask: Tensor | None = None) -> Any:
    """Return the match loss ``fsp``.

    Shapes: two of ``[batch, length, width]`` on each side; mask ``[batch, length]``.
    """
    return MATCH_LOSS_MAP["fsp"](state_S, state_T, mask)


def mmd_loss(state_S: Sequence[Tensor], state_T: Sequence[Tensor], mask: Tensor | None = None) -> Any:
    """Return the match loss ``mmd``, an alias of ``nst``.

    Shapes as in ``fsp_loss``; the widths of the two sides may differ.
    """
    return MATCH_LOSS_MAP["mmd"](state_S, state_T, mask)
