"""The objective beside the student in a checkpoint's folder, and what the run was that wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kdplug.config.distillation import DistillationConfig
from kdplug.engine.checkpoint.archive import CHECKSUMS, damage, write_checksums
from kdplug.engine.checkpoint.checkpoint import load_objective
from kdplug.engine.checkpoint.identity import check_identity
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json
from kdplug.integrations.transformers.link import NAME
from kdplug.objective.objective import Objective

WEIGHTS = "objective.safetensors"
CONFIG = "distillation.json"
IDENTITY = "kdplug-identity.json"


def divide(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of student and objective together, as each has it by itself."""
    prefix = f"{NAME}."
    objective = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith(prefix)}, objective


def write_objective(
    folder: Path, state: Mapping[str, Any], config: DistillationConfig, identity: Mapping[str, Any] | None
) -> None:
    """Write what the objective has learned, the config that it was made from, and in a run its ``identity``; then checksums of
    these files and of the weights of the student, which are there already.

    Raises: ``RunError`` for a state that is not made of tensors.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise RunError(f"the objective's state holds {name!r}, a {type(value).__name__}; only tensors can be saved")
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    (folder / IDENTITY).unlink(missing_ok=True)
    if identity is not None:
        (folder / IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
    names = [CONFIG, *([] if identity is None else [IDENTITY])]
    write_checksums(folder, [*sorted(folder.glob("*.safetensors")), *(folder / name for name in names)])


def check_resumed(folder: Path, identity: Mapping[str, Any], *, changed_is_meant: bool) -> None:
    """Compare the run that wrote a checkpoint with this one; of a checkpoint that says nothing of its run, nothing.

    Raises: ``RunError`` that lists what differs, unless ``changed_is_meant``; ``RunError`` for a damaged checkpoint.
    """
    check_undamaged(folder)
    if (folder / IDENTITY).is_file() and not changed_is_meant:
        check_identity(read_json(folder / IDENTITY), dict(identity), folder)


def check_undamaged(folder: Path) -> None:
    """Raises: ``RunError`` where the weights of student or objective are not those that were written."""
    if (folder / CHECKSUMS).is_file() and (found := damage(folder)):
        raise RunError(f"{folder} is damaged: {', '.join(found)}. Name an older checkpoint")


def read_objective(objective: Objective, folder: Path) -> None:
    """Put what was learned into ``objective``.

    Raises: ``RunError`` where the folder has none, or one of another config.
    """
    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder} holds no {WEIGHTS}: it was not written by a DistillationTrainer")
    load_objective(objective, folder)
