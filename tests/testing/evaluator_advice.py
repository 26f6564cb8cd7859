"""Advice for evaluators, followed."""

from __future__ import annotations

import copy
import math

import torch
from testing import evaluator_mutant as wrong
from testing.advice import followed, undone
from testing.evaluator_mutant import Norms, SumsEvaluatorLaws
from testing.specimen import laws_of

undone(
    ABareNumber="return a dict such as {'accuracy': 0.9}",
    Text="convert it with float()",
    NumberedFigures="write a word",
    NothingByNothing="clamp a count before dividing by it",
)
RESTORE = "Evaluate a copy, as copy.deepcopy(model) makes, or restore what is changed"
undone(LeftInTraining=RESTORE, Frozen=RESTORE)


@followed("Halved", RESTORE)
class HalvedCopy(Norms):
    """Converts a copy to half precision."""

    def __call__(self, model, task):
        return super().__call__(copy.deepcopy(model).half().float(), task)


SEEDED = "Draw from a torch.Generator with a fixed seed, or declare measures_time = True"


@followed("Noisy", SEEDED)
class FixedSeed(Norms):
    """Draws with a fixed seed."""

    def norm(self, model, power):
        return super().norm(model, power) + torch.rand((), generator=torch.Generator().manual_seed(0))


followed("Noisy", SEEDED)(laws_of(SumsEvaluatorLaws, wrong.Noisy, measures_time=True))

OTHERS = "Measure the model that the call gets, and keep nothing from an earlier call; or declare reads_weights = False"
undone(FirstForAll=OTHERS)
followed("FirstForAll", OTHERS)(laws_of(SumsEvaluatorLaws, wrong.FirstForAll, reads_weights=False))


@followed("SomeNames", "Return every figure for every model, nan where there is none")
class EveryName(Norms):
    """Has every name for every model."""

    def __call__(self, model, task):
        first = float(next(model.parameters()).flatten()[0])
        return {**super().__call__(model, task), "first": first if math.isfinite(first) else math.nan}
