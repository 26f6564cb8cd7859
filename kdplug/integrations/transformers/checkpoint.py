"""Save the objective and the run's identity to a Trainer checkpoint, and load them from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.engine.checkpoint.archive import CHECKSUMS, damage, read_archive, write_archive, write_checksums
from kdplug.engine.checkpoint.checkpoint import load_objective
from kdplug.engine.checkpoint.identity import check_identity
from kdplug.engine.checkpoint.weights import buffers_to_save, load_buffers
from kdplug.errors import RunError
from kdplug.host.bounded_json import read_json
from kdplug.integrations.transformers.link import NAME
from kdplug.objective.objective import Objective

WEIGHTS = "objective.safetensors"
CONFIG = "distillation.json"
IDENTITY = "kdplug-identity.json"
PROCESSES = "kdplug-processes"


def divide(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a combined state dict into the student's and the objective's."""
    prefix = f"{NAME}."
    objective = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if not key.startswith(prefix)}, objective


def write_objective(
    folder: Path, state: Mapping[str, Any], config: DistillationConfig, identity: Mapping[str, Any] | None
) -> None:
    """Write the objective's state, its config, and the run's ``identity`` if given.

    Checksums cover these files and the student's weights, which must exist already.

    Raises: ``RunError`` if the state holds anything other than tensors.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise RunError(f"the objective's state holds {name!r}, a {type(value).__name__}; only tensors can be saved")
    # Copied, because safetensors rejects tensors that share memory.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    (folder / IDENTITY).unlink(missing_ok=True)
    if identity is not None:
        (folder / IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
    names = [CONFIG, *([] if identity is None else [IDENTITY])]
    write_checksums(folder, [*sorted(folder.glob("*.safetensors")), *(folder / name for name in names)])


def check_resumed(folder: Path, identity: Mapping[str, Any], *, changed_is_meant: bool) -> None:
    """Compare the run that wrote a checkpoint with this one, if the checkpoint has an identity.

    Raises: ``RunError`` that lists the differences, unless ``changed_is_meant``; ``RunError`` for a damaged checkpoint.
    """
    check_undamaged(folder)
    if (folder / IDENTITY).is_file() and not changed_is_meant:
        check_identity(read_json(folder / IDENTITY), dict(identity), folder)


def check_undamaged(folder: Path) -> None:
    """Raise ``RunError`` if a file of the student or objective is missing or does not match its checksum."""
    if (folder / CHECKSUMS).is_file() and (found := damage(folder)):
        raise RunError(f"{folder} is damaged: {', '.join(found)}. Use an older checkpoint")


def write_own_buffers(folder: Path, objective: nn.Module, rank: int) -> None:
    """Write the buffers of the objective on process ``rank``: each process has its own memory banks."""
    place = folder / PROCESSES  # not next to the other files, whose checksums the main process writes at the same time
    place.mkdir(parents=True, exist_ok=True)
    write_archive(place, f"process-{rank}", buffers_to_save(objective))


def read_own_buffers(folder: Path, objective: nn.Module, rank: int) -> None:
    """Load the buffers that process ``rank`` has written, if any, into ``objective``."""
    if (folder / PROCESSES / f"process-{rank}.json").is_file():
        load_buffers(objective, read_archive(folder / PROCESSES, f"process-{rank}"))


def read_objective(objective: Objective, folder: Path) -> None:
    """Load the objective's state into ``objective``.

    Raises: ``RunError`` if the folder contains no such state, or the state belongs to another config.
    """
    if not (folder / WEIGHTS).is_file():
        raise RunError(
            f"{folder} contains no {WEIGHTS}: DistillationTrainer did not write this checkpoint. Use another one"
        )
    load_objective(objective, folder)
