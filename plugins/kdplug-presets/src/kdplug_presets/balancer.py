"""Balancers: factors of the terms' weights, computed from the terms' values or gradients after each optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from kdplug import SettingError


def _not_empty(layer: str | list[str] | None) -> str | list[str] | None:
    if layer is not None and not (layer and all(one.strip() for one in ([layer] if isinstance(layer, str) else layer))):
        raise ValueError("must be the path of a module, a list of these, or null")
    return layer


Layer = Annotated[str | list[str] | None, AfterValidator(_not_empty)]
"""The student's modules whose parameters' gradients are measured; all trainable parameters if ``None``."""

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_LIMIT = 30.0
"""Limit of the logarithm of a weight: e^30 is about 1e13."""

_LEAST = 1e-4
"""Least weight of a term: at 0 a term would have no gradient that could raise its weight again."""


class Uncertainty(nn.Module):
    """Weight terms by homoscedastic uncertainty: ``exp(-s_i)``, where ``s_i`` is the trained log variance of term i.

    The log variances minimize ``sum_i exp(-s_i) · L_i + s_i`` by gradient descent. Their gradient
    ``1 - exp(-s_i) · L_i`` depends on the student only through the value ``L_i``, so a descent step on detached values is
    the same as training them together with the student. At the minimum the weight is ``1 / L_i``. All start at 0, a weight
    of 1.

    Settings: ``lr``, the learning rate of the log variances.

    Source: Kendall et al. 2018, arXiv:1705.07115, section 3.3, as in the authors' code (yaringal/multi-task-learning-example),
    which omits the factors 1/2.
    """

    log_variances: Tensor

    def __init__(self, num_terms: int, *, lr: Rate = 0.01) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("log_variances", torch.zeros(num_terms))

    def update(self, values: Tensor) -> Tensor:
        """Return the weights after one descent step of the log variances."""
        slope = 1 - torch.exp(-self.log_variances) * values
        self.log_variances.sub_(self.lr * slope).clamp_(-_LIMIT, _LIMIT)
        return torch.exp(-self.log_variances)


class DynamicWeightAverage(nn.Module):
    """Give more weight to terms that fall more slowly: ``K · softmax(r / temperature)`` over the K terms.

    ``r_i`` is the mean value of term i in the last period divided by that in the period before. During the first two
    periods all weights are 1. The weights add up to K.

    Settings: ``temperature``, the higher, the more equal the weights; ``period``, the number of optimizer steps in a mean.
    The paper's period is an epoch.

    Source: Liu et al. 2019, arXiv:1803.10704, section 3.3, with its temperature 2.
    """

    total: Tensor
    steps: Tensor
    periods: Tensor
    last: Tensor
    weights: Tensor

    def __init__(
        self, num_terms: int, *, temperature: Rate = 2.0, period: Annotated[int, Field(ge=1, le=2**31 - 1)] = 100
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.period = period
        self.register_buffer("total", torch.zeros(num_terms))
        self.register_buffer("last", torch.ones(num_terms))
        self.register_buffer("weights", torch.ones(num_terms))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("periods", torch.zeros((), dtype=torch.int64))

    def update(self, values: Tensor) -> Tensor:
        """Add the values to the period's mean and, at its end, return new weights."""
        self.total.add_(values)
        self.steps.add_(1)
        ends = self.steps == self.period
        mean = self.total / self.period
        ratio = mean / self.last
        found = len(values) * (ratio / self.temperature).softmax(0)
        self.weights.copy_(torch.where(ends & (self.periods > 0), found, self.weights))
        self.last.copy_(torch.where(ends, mean, self.last))
        self.periods.add_(ends)
        self.total.mul_(~ends)
        self.steps.mul_(~ends)
        return self.weights.clone()


class GradNorm(nn.Module):
    """Equalize the terms' weighted gradient norms, with a larger norm for terms that fall more slowly.

    With ``G_i = w_i · g_i``, their mean ``G`` and the relative inverse training rate ``r_i`` (the value divided by the
    first value, divided by the mean of that ratio), a step of Adam on ``sum_i |G_i - G · r_i^alpha|`` changes the weights,
    where ``G · r_i^alpha`` is constant. Then they are divided by their mean, so that they add up to the number of terms.

    The gradient norms cost a backward pass of each term up to ``layer`` in each step.

    Settings: ``alpha``, the strength of the restoring force; ``lr``, the learning rate of the weights; ``layer``, the
    student's modules whose parameters' gradients are measured, by default all: the paper takes the last shared layer.

    Source: Chen et al. 2018, arXiv:1711.02257, algorithm 1, with the alpha 1.5 of its experiments on NYUv2. The paper leaves
    the update rule open; Adam does not depend on the scale of the losses.
    """

    first: Tensor
    weights: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(
        self,
        num_terms: int,
        *,
        alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5,
        lr: Rate = 0.025,
        layer: Layer = None,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.lr = lr
        self.layer = layer
        self.register_buffer("weights", torch.ones(num_terms))
        for name in ("first", "mean", "square"):
            self.register_buffer(name, torch.zeros(num_terms))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def update(self, values: Tensor, gradients: Tensor) -> Tensor:
        """Return the weights after one step of Adam."""
        self.first.copy_(torch.where(self.steps > 0, self.first, values))
        ratio = values / self.first
        target = (self.weights * gradients).mean() * (ratio / ratio.mean()) ** self.alpha
        found = self.weights - self.lr * self._direction(torch.sign(self.weights * gradients - target) * gradients)
        found = found.clamp(min=_LEAST)
        self.weights.copy_(found / found.mean())
        return self.weights.clone()

    def _direction(self, slope: Tensor) -> Tensor:
        """Return the direction of Adam (Kingma and Ba 2015, arXiv:1412.6980) with its default settings."""
        (first, second), epsilon = (0.9, 0.999), 1e-8
        self.steps.add_(1)
        self.mean.mul_(first).add_(slope, alpha=1 - first)
        self.square.mul_(second).addcmul_(slope, slope, value=1 - second)
        steps = self.steps.to(self.weights)  # a power of an integer tensor would be float32
        mean, square = self.mean / (1 - first**steps), self.square / (1 - second**steps)
        return mean / (square.sqrt() + epsilon)


class Share(nn.Module):
    """Give each term its share of the sum of gradient norms before training, then keep the weights.

    The gradient norms ``g_i`` are means over the first ``calibrate_steps`` steps, which are not trained on. With terms of
    fixed weight ``w_f``, ``w_i = s_i / (1 - S) · sum_f w_f · g_f / g_i``, where ``S`` is the sum of the shares. Without, the
    shares add up to 1 and the first share has weight 1: ``w_i = (s_i / g_i) / (s_1 / g_1)``.

    Settings: ``calibrate_steps``, the number of steps to measure; ``layer``, the student's modules whose parameters'
    gradients are measured, by default all.

    Source: definition; the ratio of gradient norms to balance two losses: Esser et al. 2021, arXiv:2012.09841, section 3.1.
    """

    total: Tensor
    steps: Tensor

    def __init__(
        self,
        weights: Sequence[float],
        shares: Sequence[float | None],
        *,
        calibrate_steps: Annotated[int, Field(ge=1, le=10_000)] = 8,
        layer: Layer = None,
    ) -> None:
        super().__init__()
        self.calibrate_steps = calibrate_steps
        self.layer = layer
        self.shares = _checked(shares)
        self.fixed = [0.0 if share is not None else weight for weight, share in zip(weights, shares, strict=True)]
        self.register_buffer("total", torch.zeros(len(weights)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def update(self, gradients: Tensor) -> Tensor:
        """Add the gradient norms to their mean and return the weights that follow from it."""
        self.total.add_(gradients)
        self.steps.add_(1)
        norms = self.total / self.steps
        ratios = torch.stack(
            [norms.new_tensor(share or 1.0) / norm for share, norm in zip(self.shares, norms, strict=True)]
        )
        given = [share for share in self.shares if share is not None]
        if len(given) < len(self.shares):
            scale = (norms * norms.new_tensor(self.fixed)).sum() / (1 - sum(given))
        else:
            scale = 1 / ratios[0]
        is_share = torch.tensor([share is not None for share in self.shares], device=norms.device)
        return torch.where(is_share, ratios * scale, 1.0)


_TOLERANCE = 1e-6


def _checked(shares: Sequence[float | None]) -> list[float | None]:
    """Return the shares. Raise ``SettingError`` if they do not add up as they must."""
    given = [share for share in shares if share is not None]
    total, is_alone = sum(given), len(given) == len(shares)
    if is_alone and abs(total - 1) > _TOLERANCE:
        scaled = ", ".join(f"{share / total:.4g}" for share in given)
        raise SettingError(
            f"the shares add up to {total:.4g}, but every term has one, so they must add up to 1. In the same ratio: "
            f"{scaled}. Or give one term a fixed weight"
        )
    if not is_alone and total > 1 - _TOLERANCE:
        raise SettingError(
            f"the shares add up to {total:.4g}, which leaves nothing for the terms with a fixed weight. They must add up to "
            "less than 1"
        )
    return list(shares)
