"""Build the models of a recipe's stages: the student at the start of each, and the student that teaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from kdplug.config.error_path import in_stage
from kdplug.config.key import keys_that_need
from kdplug.config.recipe import Recipe
from kdplug.config.stage import CACHING, Stage
from kdplug.config.training import LoopConfig
from kdplug.contracts.task import FingerprintedTask, Task, TeacherFit
from kdplug.engine.cache.coding import Coding
from kdplug.engine.checkpoint.weights import load_student
from kdplug.errors import ConfigError, RunError, did_you_mean
from kdplug.host.wrapped_task import WrappedTask
from kdplug.recipes.arm import Arm, ArmRun
from kdplug.recipes.cache_provenance import fingerprint
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.stages.result import StageResult
from kdplug.recipes.task import build_task, check_vocabularies, prepare, required_reads


class StageTask(WrappedTask):
    """The task of one stage: its student starts from an earlier stage, and a student of an earlier stage may teach it."""

    def __init__(self, base: Task, start: Callable[[], nn.Module]) -> None:
        super().__init__(base=base)
        self._start = start
        self._teacher: Callable[[], nn.Module] | None = None
        if isinstance(base, FingerprintedTask):  # the stage changes nothing that the teacher of the task depends on
            self.fingerprint = base.fingerprint

    def learn_from(self, teacher: Callable[[], nn.Module], adaptor: Any) -> None:
        """Let the student of another stage teach this one."""
        self._teacher = teacher
        self.teacher_adaptor = adaptor  # type: ignore[method-assign]

    def build_student(self) -> nn.Module:
        """Return the student at the start of the stage, with its frozen parameters."""
        return self._start()

    @property
    def starts_student(self) -> bool:
        """Return false: ``build_student`` has done it."""
        return False

    def build_teacher(self) -> nn.Module:
        """Return the teacher of the stage."""
        return super().build_teacher() if self._teacher is None else self._teacher()

    def teacher_fit(self) -> TeacherFit | None:
        """Return no settings for a teacher that an earlier stage has trained."""
        return super().teacher_fit() if self._teacher is None else None


@dataclass(slots=True)
class StageStudents:
    """The students of a recipe's stages for the seed of ``runner``.

    ``teacher`` is that of the task; a student that starts from a teacher takes its weights. ``is_untrained`` builds every
    student without the weights of earlier stages, for checks before training. ``coding`` encodes the outputs in a teacher
    cache that all stages share.
    """

    runner: RecipeRunner
    teacher: nn.Module | None
    is_untrained: bool = False
    coding: Coding | None = None
    _tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        return self.runner.recipe.planned_stages()

    def stage_runner(self, stage: Stage) -> RecipeRunner:
        """Return the runner of one stage."""
        shares = self.shares_cache(stage)
        task = StageTask(self.task(stage), lambda: self.start(stage))
        if stage.teacher is not None:
            taught = self._stage(stage.teacher)
            task.learn_from(lambda: self.student(taught), self.task(taught).student_adaptor)
        elif shares:  # a cache is valid for one adaptor only
            task.teacher_adaptor = self.runner.task.teacher_adaptor  # type: ignore[method-assign]
        recipe = stage.recipe if shares else without_cache(stage.recipe)
        return replace(self.runner, recipe=recipe, task=task, stage=stage.name, coding=self.coding)

    def task(self, stage: Stage) -> Task:
        """Return the task of a stage, which is that of the recipe unless its student has other settings."""
        if not stage.has_own_student:
            return self.runner.task
        if stage.name not in self._tasks:
            with in_stage(stage):
                _, task = build_task(stage.recipe)
                prepare(task, required_reads(self.runner.recipe))
                check_vocabularies(stage.recipe, task)
            self._tasks[stage.name] = task
        return self._tasks[stage.name]

    def start(self, stage: Stage) -> nn.Module:
        """Return the student at the start of a stage, with its frozen parameters."""
        student = self._started(stage)
        frozen = frozen_parameters(student, stage)
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        if frozen and not any(parameter.requires_grad for parameter in student.parameters()):
            raise ConfigError("leaves no parameter of the student to train. Name fewer parameters").at("freeze")
        return student

    def student(self, stage: Stage) -> nn.Module:
        """Return the student of a complete stage.

        Raises: ``RunError`` if the stage is not complete.
        """
        student = self._started(stage)
        if not self.is_untrained:
            folder = self.folder(stage)
            result = StageResult.read(folder)
            if result is None:
                raise RunError(f"{folder} holds no complete stage {stage.name!r}")
            load_student(student, folder / f"step-{result.chosen}")
        return student

    def folder(self, stage: Stage) -> Path:
        """Return the folder of a stage's checkpoints, log and result."""
        return self.run(stage).folder(Path(self.runner.recipe.output_dir))

    def run(self, stage: Stage) -> ArmRun:
        """Return the training run of a stage."""
        seed = self.runner.recipe.seed if self.runner.seed is None else self.runner.seed
        return ArmRun(Arm.DISTILLED, seed, stage.name)

    def shares_cache(self, stage: Stage) -> bool:
        """Return whether a stage reads the outputs of the task's teacher, and its batches are those of the recipe."""
        if stage.teacher is not None:
            return False
        if not stage.has_own_student:
            return True
        own, shared = (fingerprint(recipe, task) for recipe, task in self._both(stage))
        return dict(own) == dict(shared)

    def _both(self, stage: Stage) -> tuple[tuple[Recipe, Task], tuple[Recipe, Task]]:
        return (stage.recipe, self.task(stage)), (self.runner.recipe, self.runner.task)

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _started(self, stage: Stage) -> nn.Module:
        if stage.start is not None:
            return self.student(self._stage(stage.start))
        runner = replace(self.runner, task=self.task(stage), stage="")
        if self.is_untrained and self.teacher is None:
            self.teacher = self.runner.built_teacher()
        return runner.student(self.teacher)


def frozen_parameters(student: nn.Module, stage: Stage) -> Mapping[str, nn.Parameter]:
    """Return the parameters of a student that a stage does not train, by name.

    Raises: ``ConfigError`` with the path of a pattern in the stage that matches no parameter.
    """
    named = dict(student.named_parameters())
    found: dict[str, nn.Parameter] = {}
    for place, glob in enumerate(stage.freeze):
        matched = {name: one for name, one in named.items() if fnmatchcase(name, glob)}
        if not matched:
            near = did_you_mean(glob, named) or f" Its first parameters are {', '.join(list(named)[:3])}"
            raise ConfigError(f"{glob!r} matches no parameter of the student.{near}").at("freeze", place)
        found |= matched
    return found


def without_cache(recipe: Recipe) -> Recipe:
    """Return a recipe whose teacher runs on every batch."""
    training = recipe.training.model_copy(update=dict.fromkeys(keys_that_need(LoopConfig, CACHING)))
    distillation = recipe.distillation.model_copy(update={CACHING: False})
    return recipe.model_copy(update={"training": training, "distillation": distillation})
