"""Update a run's teacher after each optimizer step, and load it from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.engine.checkpoint.archive import check_file
from kdplug.engine.checkpoint.fingerprint import UNKNOWN
from kdplug.engine.checkpoint.folder import TEACHER
from kdplug.engine.checkpoint.weights import read_weights
from kdplug.engine.parallel.process import broadcast
from kdplug.engine.teacher import Teacher, TeacherSide
from kdplug.errors import RunError
from kdplug.objective.teacher_update import TeacherUpdate

_FIELD = "teacher_update"


class UpdatedTeacher:
    """A teacher that a run updates from its student. Its weights are equal on all processes.

    DDP keeps the student's parameters equal, but each process computes its own batch norm statistics, so the buffers of the
    main process are used. Create it once both models are on their devices.

    Raises: ``ConfigError`` for a student of another architecture; ``RunError`` under FSDP.
    """

    def __init__(
        self, config: DistillationConfig, teacher: TeacherSide | None, student: nn.Module, accelerator: Accelerator
    ) -> None:
        assert isinstance(teacher, Teacher)
        if accelerator.is_fsdp2:
            raise RunError(
                "cannot be combined with FSDP, which divides the student's parameters among the processes. Use DDP, or remove "
                "teacher_update",
                field=_FIELD,
            )
        self.model: nn.Module = teacher.model
        self._teacher = teacher
        self._update = TeacherUpdate(config, teacher.model, student)
        self._is_alone = accelerator.num_processes == 1
        teacher.is_updated = True

    def identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a run's identity that changes: a checkpoint holds the teacher's weights, so those at the start
        of a resumed run do not matter.
        """
        return {"teacher": {**identity["teacher"], "weights": UNKNOWN}}

    def after(self, step: int, total_steps: int) -> None:
        """Update the teacher after optimizer step ``step`` of ``total_steps``."""
        self._update.update(progress=min(1.0, step / total_steps), step=step, total_steps=total_steps)
        for buffer in () if self._is_alone else self._update.buffers:
            broadcast(buffer)
        self._teacher.note_update()

    def load(self, folder: Path) -> None:
        """Load the teacher's weights from a checkpoint.

        Raises: ``RunError`` if it holds none, or if they are incompatible.
        """
        if not (folder / TEACHER).is_file():
            raise RunError(
                f"{folder} contains no weights of the teacher: the run that wrote it had no teacher_update. Resume with the "
                "config of that run, or start a new run in another output_dir",
                field=_FIELD,
            )
        check_file(folder / TEACHER)
        read_weights(self.model, folder / TEACHER, "teacher")
