"""How long a recipe trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from kdplug.config.recipe import RecipeTraining


@dataclass(frozen=True, slots=True)
class Budget:
    """Optimizer steps in all, and the same length in passes over the loader (a fraction counts)."""

    total_steps: int
    epochs: float

    @classmethod
    def of(cls, training: RecipeTraining, loader: DataLoader[Any]) -> Budget:
        """The budget of a recipe over ``loader``; a window of accumulated batches is one step."""
        steps = math.ceil(len(loader) / training.gradient_accumulation_steps)
        if training.num_steps is not None:
            return cls(training.num_steps, training.num_steps / steps)
        assert training.num_epochs is not None
        return cls(training.num_epochs * steps, training.num_epochs)
