"""Curriculum temperature: a temperature that is trained against the student."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdplug_papers.checks import check_setting


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``-strength``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * slope, None


class CTKD(nn.Module):
    """Temperature ``low + span · sigmoid(a)``, ``a`` trained to raise the loss that the student lowers.

    The gradient of ``a`` is reversed and multiplied by λ, which rises from 0 to 1 along half a cosine over the share
    ``ramp`` of the run (10 of 240 epochs). ``a`` is 1 at first, which gives 15.6. The configured temperature has no effect.
    Usual losses: ``kl`` with weight 0.9 and labels with 0.1, or ``{name: dkd, alpha: 1, beta: 2}``.

    Shapes: returns one temperature, ``[1]``.
    Raises: ``SettingError`` unless ``low > 0``, ``span > 0`` and ``0 < ramp <= 1``.
    Source: Li et al. 2023, arXiv:2211.16231, global temperature; constants of zhengli97/CTKD.
    """

    def __init__(self, *, low: float = 1.0, span: float = 20.0, initial: float = 1.0, ramp: float = 10 / 240) -> None:
        super().__init__()
        for name, value in (("low", low), ("span", span), ("ramp", ramp)):
            check_setting(name, value, above=0)
        check_setting("ramp", ramp, below=math.nextafter(1, 2))
        self.low, self.span, self.ramp = low, span, ramp
        self.position = nn.Parameter(torch.full((1,), float(initial)))

    def forward(self, progress: float) -> Tensor:
        """Return the temperature at this progress of the run."""
        strength = (1 - math.cos(math.pi * min(progress / self.ramp, 1.0))) / 2
        position: Tensor = _Reversal.apply(self.position, strength)  # type: ignore[no-untyped-call]
        return self.low + self.span * position.sigmoid()
