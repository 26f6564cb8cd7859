"""The objective beside the student in a checkpoint's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kdplug.config.distillation import DistillationConfig
from kdplug.engine.checkpoint import load_objective
from kdplug.errors import RunError
from kdplug.integrations.transformers.link import NAME
from kdplug.objective.objective import Objective

WEIGHTS = "objective.safetensors"
CONFIG = "distillation.json"


def divide(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of student and objective together, as each has it by itself."""
    prefix = f"{NAME}."
    objective = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith(prefix)}, objective


def write_objective(folder: Path, state: Mapping[str, Any], config: DistillationConfig) -> None:
    """Write what the objective has learned, and the config that it was made from.

    Raises: ``RunError`` for a state that is not made of tensors.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise RunError(f"the objective's state holds {name!r}, a {type(value).__name__}; only tensors can be saved")
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")


def read_objective(objective: Objective, folder: Path) -> None:
    """Put what was learned into ``objective``.

    Raises: ``RunError`` where the folder has none, or one of another config.
    """
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder} holds no {WEIGHTS}: it was not written by a DistillationTrainer")
    load_objective(objective, folder)
