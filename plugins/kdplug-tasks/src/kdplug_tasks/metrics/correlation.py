"""Correlation of two rows of numbers."""

from __future__ import annotations

from torch import Tensor


def pearson(found: Tensor, true: Tensor) -> float:
    """Pearson's correlation; 0 where one side does not vary, which leaves it undefined."""
    from scipy.stats import pearsonr

    if _is_constant(found) or _is_constant(true):
        return 0.0
    return float(pearsonr(found.double().numpy(), true.double().numpy()).statistic)


def spearman(found: Tensor, true: Tensor) -> float:
    """Spearman's rank correlation; 0 where one side does not vary, which leaves it undefined."""
    from scipy.stats import spearmanr

    if _is_constant(found) or _is_constant(true):
        return 0.0
    return float(spearmanr(found.double().numpy(), true.double().numpy()).statistic)


def _is_constant(values: Tensor) -> bool:
    spread = float(values.max() - values.min()) if len(values) else 0.0
    return len(values) < 2 or spread <= 1e-7 * float(values.abs().max())
