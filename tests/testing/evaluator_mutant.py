"""Defects of evaluators."""

from __future__ import annotations

import random

import torch
from testing.mutant import mutant
from testing.task_model import Sums

from kdplug.testing import EvaluatorLaws


class SumsEvaluatorLaws(EvaluatorLaws):
    task = Sums


class Norms:
    """Norms of the weights."""

    def __init__(self) -> None:
        """Nothing to keep."""

    def __call__(self, model, task):
        return {f"norm {power}": float(self.norm(model, power)) for power in (1, 2)}

    def norm(self, model, power):
        return torch.linalg.vector_norm(torch.cat([one.flatten() for one in model.parameters()]), power)


FIGURES = "test_it_returns_figures_by_name"
SAME = "test_evaluating_leaves_the_model_as_it_was"


@mutant(SumsEvaluatorLaws, FIGURES, "must return figures by name")
class ABareNumber(Norms):
    """Returns a number."""

    def __call__(self, model, task):
        return float(self.norm(model, 2))


@mutant(SumsEvaluatorLaws, FIGURES, "'norm' must be a number, got '")
class Text(Norms):
    """Formats its figure."""

    def __call__(self, model, task):
        return {"norm": f"{self.norm(model, 2):.3f}"}


@mutant(SumsEvaluatorLaws, FIGURES, "the name of a figure must be text, got 2")
class NumberedFigures(Norms):
    """Names figures by numbers."""

    def __call__(self, model, task):
        return {2: float(self.norm(model, 2))}


@mutant(SumsEvaluatorLaws, FIGURES, "'ratio' is nan for an untrained student")
class NothingByNothing(Norms):
    """Divides by a count of 0."""

    def __call__(self, model, task):
        count = sum(bool((one == 7).any()) for one in model.parameters())
        return {"norm": float(self.norm(model, 2)), "ratio": float(torch.tensor(0.0) / count)}


@mutant(SumsEvaluatorLaws, SAME, "changes ")
class Halved(Norms):
    """Converts the model to half precision."""

    def __call__(self, model, task):
        return super().__call__(model.half().float(), task)


@mutant(SumsEvaluatorLaws, SAME, "leaves the model in training mode")
class LeftInTraining(Norms):
    """Leaves the model in training mode."""

    def __call__(self, model, task):
        return super().__call__(model.train(), task)


@mutant(SumsEvaluatorLaws, SAME, "changes requires_grad of the model")
class Frozen(Norms):
    """Freezes the model."""

    def __call__(self, model, task):
        return super().__call__(model.requires_grad_(False), task)


@mutant(SumsEvaluatorLaws, "test_the_same_model_gets_the_same_figures", "'norm 1' differs between two evaluations")
class Noisy(Norms):
    """Measures at a random place."""

    def norm(self, model, power):
        return super().norm(model, power) + torch.rand(()) + random.random()


@mutant(SumsEvaluatorLaws, "test_another_model_gets_other_figures", "get the same figures")
class FirstForAll(Norms):
    """Keeps the figures of its first model."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.found = None

    def __call__(self, model, task):
        self.found = self.found or super().__call__(model, task)
        return self.found


@mutant(SumsEvaluatorLaws, "test_every_model_has_the_same_names", "and other names for another")
class SomeNames(Norms):
    """Names a figure only for some models."""

    def __call__(self, model, task):
        found = super().__call__(model, task)
        first = next(model.parameters()).flatten()[0]
        return {**found, f"first {float(first):.6f}": float(first)}
