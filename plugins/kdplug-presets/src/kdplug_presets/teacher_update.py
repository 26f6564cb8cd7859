"""Compute a teacher's parameters from the student's."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

Decay = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def ema(
    teacher_tensor: Tensor,
    student_tensor: Tensor,
    progress: float,
    step: int,
    *,
    decay: Decay = 0.999,
    warm_up: bool = True,
    final_decay: Decay | None = None,
) -> Tensor:
    """Exponential moving average of the student's parameters.

    ``teacher ← d · teacher + (1 - d) · student`` after each optimizer step, where ``d`` is ``decay``. With ``final_decay``,
    ``d`` moves from ``decay`` to ``final_decay`` along half a cosine over the run, as in BYOL and DINO:
    ``d = final_decay - (final_decay - decay) · (cos(π · progress) + 1) / 2``. With ``warm_up``, ``d`` is at most
    ``1 - 1 / (step + 1)``, the mean over all steps so far, so that the teacher forgets its start: Mean Teacher's rule.

    Settings: ``decay``, share of the teacher's own value that each step keeps; ``warm_up``, whether to limit it at the
    start; ``final_decay``, its value at the end of the run, by default ``decay``.

    Shapes: any; the result has the shape and precision of ``teacher_tensor``. Half-precision teachers lose updates below
    their rounding error: keep the teacher in float32.
    Source: Tarvainen and Valpola 2017, arXiv:1703.01780, with the warm-up of their code; Grill et al. 2020,
    arXiv:2006.07733, for the cosine.
    """
    kept = decay
    if final_decay is not None:
        kept = final_decay - (final_decay - decay) * (math.cos(math.pi * progress) + 1) / 2
    if warm_up:
        kept = min(kept, 1 - 1 / (step + 1))
    return teacher_tensor.lerp(student_tensor, 1 - kept)
