"""Build and train the three models of a recipe: teacher, distilled student, and student without distillation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from kdplug.config.error_path import prefixed
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.training import TrainingConfig
from kdplug.contracts.task import Part, StartsStudent, Task
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.session import teacher_cache
from kdplug.engine.cache.run import check_teacher, precheck
from kdplug.engine.checkpoint.checkpoint import latest
from kdplug.engine.checkpoint.folder import step_of
from kdplug.engine.checkpoint.resume import AUTO, check_places
from kdplug.engine.observe.activity import busy
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.run import Plan, RunResult, make_plan
from kdplug.engine.training_module import Adaptor
from kdplug.errors import RunError
from kdplug.objective.objective import Objective
from kdplug.recipes.cache_provenance import fingerprint
from kdplug.recipes.history import History
from kdplug.recipes.result import (
    Figures,
    count_parameters,
    eval_batch_size,
    eval_bytes,
    evaluate,
    measure_speed,
    size_on_disk,
)
from kdplug.recipes.task import preparation, teacher_fit
from kdplug.recipes.training import Budget, Stage, make_optimizer, make_schedule, train_on_labels


def training_loader(
    task: Task, part: Part, *, batch_size: int, seed: int, like: Part, workers: int = 0
) -> DataLoader[Any]:
    """Return shuffled batches of one part; one pass yields as many examples as the part ``like`` has.

    A smaller ``part`` is repeated within the pass, each time in a new order, so two loaders ``like`` the same part
    yield the same number of batches of the same sizes.

    Raises: ``RunError`` if a part is empty.
    """
    data = _sized(task, part)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(data, num_samples=len(_sized(task, like)), generator=generator)
    return DataLoader(
        data, batch_size=batch_size, sampler=sampler, collate_fn=task.collate, generator=generator, num_workers=workers
    )


def test_loader(task: Task, *, batch_size: int) -> DataLoader[Any]:
    """The test part in order. Iterating it does not touch torch's global generator.

    Raises: ``RunError`` if it is empty.
    """
    generator = torch.Generator().manual_seed(0)
    return DataLoader(_sized(task, "test"), batch_size=batch_size, collate_fn=task.collate, generator=generator)


def _sized(task: Task, part: Part) -> Any:
    with prefixed("task"), busy("Reading the data"):
        data = task.data(part)
    if not isinstance(data, Sized):
        raise RunError(f"the task's data({part!r}) must have a length, but {type(data).__name__} has none")
    if len(data) == 0:
        raise RunError(f"the task's data({part!r}) is empty")
    return data


def _plan(training: RecipeTraining, loader: DataLoader[Any], config: TrainingConfig) -> Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself raises the same warnings
        return make_plan(loader, config, num_epochs=training.num_epochs, num_steps=training.num_steps)


@dataclass(frozen=True, slots=True)
class RecipeRunner:
    """Builds and trains each model of a recipe, from the recipe's seed.

    ``say`` is called with one sentence before each training run. With ``resume``, each training run resumes from its
    last checkpoint, so a completed one is not repeated; ``resume_changed`` allows a changed recipe or version.
    """

    recipe: Recipe
    task: Task
    say: Callable[[str], None]
    show_progress: bool
    resume: bool = False
    resume_changed: bool = False

    def check_cache(self) -> None:
        """Check, as far as possible without building models, that the teacher cache was built from this recipe.

        Raises: ``RunError`` that lists the differences.
        """
        config = Stage.STUDENT.config(self.recipe)
        cache = teacher_cache(config, self.recipe.distillation)
        if cache is not None and cache.path is not None:
            with busy("Hashing the data"):
                cache.about = dict(fingerprint(self.recipe, self.task))
            loader = self.loader("distillation", self.recipe.training.batch_size)
            with busy("Checking the teacher cache"):
                precheck(cache, self.task.teacher_adaptor, Objective(self.recipe.distillation), loader, config)

    def check_places(self) -> None:
        """Check that no checkpoint of the training runs replaces a folder that no run wrote, before the first one starts.

        Raises: ``RunError``.
        """
        training, batch = self.recipe.training, self.recipe.training.batch_size
        runs = [
            (Stage.STUDENT, training, self.loader("distillation", batch)),
            (Stage.BASELINE, training, self.loader("baseline", batch, like="distillation")),
        ]
        if training.teacher_cache is None and (fit := self.fit()) is not None:
            runs.append((Stage.TEACHER, fit, self.loader("teacher", fit.batch_size)))
        for stage, length, loader in runs:
            config = stage.config(self.recipe)
            folder = Path(config.output_dir)
            before = latest(folder, warns=False) if self.resume else None
            check_places(folder, before, _plan(length, loader, config), None)

    def teacher(self, folder: Path | None = None) -> nn.Module:
        """Build the teacher, and train it if the task defines a training; checkpoints go to ``folder`` if given."""
        model, training = self.built_teacher(), self.fit()
        if training is not None:
            loader = self.loader("teacher", training.batch_size)
            config = Stage.TEACHER.config(self.recipe, folder)
            self._announce("Training the teacher", "Teacher already trained", config, Budget.of(training, loader))
            self._train_on_labels(config, model, self.task.teacher_adaptor, loader, training)
        return model

    def built_teacher(self) -> nn.Module:
        """Return the teacher as the task builds it, seeded."""
        set_seed(self.recipe.seed)
        with prefixed("task"), busy("Building the teacher"):
            return self.task.build_teacher()

    def fit(self) -> RecipeTraining | None:
        """Return the training settings of the teacher; ``None`` if the task builds a trained one."""
        with prefixed("task"):
            fit = teacher_fit(self.task)
        if fit is None:
            return None
        with prefixed("task", "teacher_fit"):
            return RecipeTraining(
                lr=fit["learning_rate"], lr_schedule="linear", num_epochs=fit["epochs"], batch_size=fit["batch_size"]
            )

    def distilled(self, teacher: nn.Module | None) -> tuple[nn.Module, History]:
        """Distil the student and return it with its history; without ``teacher``, from the cache."""
        training, student = self.recipe.training, self.student(teacher)
        loader = self.loader("distillation", training.batch_size)
        budget = Budget.of(training, loader)
        config = Stage.STUDENT.config(self.recipe)
        self._announce("Distilling the student", "Student already distilled", config, budget)
        plan = _plan(training, loader, config)
        prepared = preparation(self.task, student)
        history = History(
            lambda model: self._evaluate(model, self._test(model))[self.task.metric],
            plan.is_save,
            None if prepared is None else prepared.counted,
        )
        self.distiller(teacher, student, [history]).train(
            make_optimizer(training, student.parameters()),
            loader,
            num_epochs=training.num_epochs,
            num_steps=training.num_steps,
            max_grad_norm=training.max_grad_norm,
            batch_postprocessor=prepared,
            resume=self._resume,
            resume_changed=self.resume_changed,
            **make_schedule(training, budget.total_steps),
        )
        return student, history

    def distiller(
        self, teacher: nn.Module | None, student: nn.Module, observers: Iterable[RunObserver] = ()
    ) -> GeneralDistiller:
        """Return the distiller from ``teacher``, or from its cached outputs, to ``student``."""
        made = GeneralDistiller(
            Stage.STUDENT.config(self.recipe),
            self.recipe.distillation,
            teacher,
            student,
            self.task.teacher_adaptor,
            self.task.student_adaptor,
            observers=observers,
            strict=True,
            show_progress=self.show_progress,
        )
        if made.teacher_cache is not None:
            with busy("Hashing the data"):
                made.teacher_cache.about = dict(fingerprint(self.recipe, self.task))
        return made

    def baseline(self, teacher: nn.Module | None) -> tuple[nn.Module, int]:
        """Train a student on labels alone, with steps and batch sizes as in distillation; return it and the steps.

        ``teacher`` only provides initial weights, the same as for the distilled student.
        """
        training, student = self.recipe.training, self.student(teacher)
        loader = self.loader("baseline", training.batch_size, like="distillation")
        config = Stage.BASELINE.config(self.recipe)
        ready = "Student without distillation already trained"
        self._announce("Training the same student without distillation", ready, config, Budget.of(training, loader))
        done = self._train_on_labels(config, student, self.task.student_adaptor, loader, training)
        return student, done.step

    def measured(self, *models: nn.Module) -> list[Figures]:
        """Return the metrics, speed and size of each model on the test part."""
        test = self._test(*models)
        speeds = measure_speed(self.task, models, test)
        return [
            Figures(
                self._evaluate(model, test),
                count_parameters(model),
                speed.seconds_per_example,
                size_on_disk(model),
                speed.units_per_second,
            )
            for model, speed in zip(models, speeds, strict=True)
        ]

    def student(self, teacher: nn.Module | None) -> nn.Module:
        """Return the untrained student, seeded; initialized from ``teacher`` if the task requests it.

        With cached teacher outputs, the teacher is built only for the initialization.
        """
        set_seed(self.recipe.seed)
        with prefixed("task"), busy("Building the student"):
            student = self.task.build_student()
        if isinstance(self.task, StartsStudent) and self.task.starts_student:
            source = self.cached_teacher() if teacher is None else teacher
            with prefixed("task"), busy("Building the student"):
                self.task.start_student(student, source)
        return student

    def cached_teacher(self) -> nn.Module:
        """Build the teacher of the cache, from its checkpoint if the recipe trains it.

        Raises: ``RunError`` if the cache was built from another teacher.
        """
        assert self.recipe.training.teacher_cache is not None
        folder = Path(self.recipe.training.teacher_cache)
        teacher = replace(self, resume=True).teacher(folder)
        with busy("Checking the teacher cache"):
            check_teacher(folder, teacher)
        return teacher

    def loader(self, part: Part, batch_size: int, like: Part | None = None) -> DataLoader[Any]:
        """Return shuffled batches of one part of the data, seeded."""
        return training_loader(
            self.task,
            part,
            batch_size=batch_size,
            seed=self.recipe.seed,
            like=like or part,
            workers=self.recipe.training.num_workers,
        )

    @property
    def _resume(self) -> str | None:
        return AUTO if self.resume else None

    def _announce(self, doing: str, ready: str, config: TrainingConfig, budget: Budget) -> None:
        """Announce a training run, and the steps that an earlier run completed."""
        folder = latest(Path(config.output_dir), warns=False) if self.resume else None
        before, total = (folder and step_of(folder)) or 0, budget.total_steps
        if before >= total:
            self.say(f"{ready} ({total} optimizer steps in {config.output_dir})")
        else:
            self.say(f"{doing}: {total} optimizer steps{f', {before} already done' if before else ''}")

    def _train_on_labels(
        self,
        config: TrainingConfig,
        model: nn.Module,
        adaptor: Adaptor,
        loader: DataLoader[Any],
        training: RecipeTraining,
    ) -> RunResult:
        return train_on_labels(
            model,
            adaptor,
            loader,
            training,
            config,
            resume=self._resume,
            resume_changed=self.resume_changed,
            show_progress=self.show_progress,
        )

    def _evaluate(self, model: nn.Module, test: DataLoader[Any]) -> dict[str, float]:
        return evaluate(self.task, model, test)

    def _test(self, *models: nn.Module) -> DataLoader[Any]:
        """Return the test part in batches whose outputs fit the budget for each of ``models``."""
        return test_loader(self.task, batch_size=self.recipe.training.eval_batch_size or self.eval_batch(*models)[0])

    def eval_batch(self, *models: nn.Module) -> tuple[int, int]:
        """Return the batch size for evaluations of ``models``, and the size in bytes of the outputs for one such batch.

        Raises: ``RunError`` if the test part is empty.
        """
        _sized(self.task, "test")
        each = max(eval_bytes(self.task, model) for model in models)
        count = self.recipe.training.eval_batch_size or eval_batch_size(each)
        return count, count * each
