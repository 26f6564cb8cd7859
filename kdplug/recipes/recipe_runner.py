"""Build and train the models of a recipe: the teacher, and for each seed the controls and the distilled student."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Subset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.error_path import prefixed
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.training import TrainingConfig
from kdplug.contracts.task import Part, Predictions, StartsStudent, Task
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.session import given_teacher, teacher_cache
from kdplug.distillers.student_transforms import StudentTransforms
from kdplug.engine.cache.coding import Coding
from kdplug.engine.cache.run import check_teacher, precheck
from kdplug.engine.cache.session import first_outputs
from kdplug.engine.checkpoint.checkpoint import latest
from kdplug.engine.checkpoint.folder import step_of
from kdplug.engine.checkpoint.resume import AUTO, check_places
from kdplug.engine.checkpoint.weights import load_student
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.observe.activity import busy
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.run import Plan, RunResult, make_plan
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.errors import RunError
from kdplug.host.acting import Acting
from kdplug.objective.objective import Objective
from kdplug.recipes.arm import Arm, ArmRun, teacher_run
from kdplug.recipes.cache_provenance import fingerprint
from kdplug.recipes.data import evaluation_loader, sized, training_loader
from kdplug.recipes.history import History
from kdplug.recipes.measure import (
    Figures,
    count_parameters,
    eval_batch_size,
    eval_bytes,
    evaluate,
    measure_speed,
    predict,
    size_on_disk,
)
from kdplug.recipes.other_teacher import other_teacher, teacher_adaptor
from kdplug.recipes.result import RunFigures
from kdplug.recipes.shuffle import BATCHES, Shuffle, check_share
from kdplug.recipes.task import MetricOf, OnPolicyCounts, preparation, teacher_fit
from kdplug.recipes.training import Budget, make_optimizer, make_schedule, train_on_labels


def _plan(training: RecipeTraining, loader: DataLoader[Any], config: TrainingConfig) -> Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself raises the same warnings
        return make_plan(loader, config, num_epochs=training.num_epochs, num_steps=training.num_steps)


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """A trained student with the weights that count, its history, and the step after which it had these weights.

    ``best_step`` is ``None`` for the weights of the last step; ``seconds`` is ``None`` if an earlier process took part.
    """

    model: nn.Module
    history: History
    steps: int
    best_step: int | None
    seconds: float | None
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class RecipeRunner:
    """Builds and trains each model of a recipe: the teacher from the recipe's seed, students from ``seed`` if given.

    ``say`` is called with one sentence before each training run. With ``resume``, each training run resumes from its
    last checkpoint, so a completed one is not repeated; ``resume_changed`` allows a changed recipe or version. ``stage`` is
    the stage of the recipe that this runner trains, and ``coding`` the encoding of a teacher cache that stages share.
    """

    recipe: Recipe
    task: Task
    say: Callable[[str], None]
    show_progress: bool
    resume: bool = False
    resume_changed: bool = False
    seed: int | None = None
    observers: tuple[RunObserver, ...] = ()
    stage: str = ""
    coding: Coding | None = None

    def check_cache(self) -> None:
        """Check, as far as possible without building models, that the teacher cache was built from this recipe.

        Raises: ``RunError`` that lists the differences.
        """
        config = self._run(Arm.DISTILLED).config(self.recipe)
        cache = teacher_cache(config, self.recipe.distillation)
        if cache is not None and cache.path is not None:
            cache.coding = self.coding or cache.coding
            with busy("Hashing the data"):
                cache.about = dict(fingerprint(self.recipe, self.task))
            loader = self.loader("distillation", self.recipe.training.batch_size)
            with busy("Checking the teacher cache"):
                precheck(
                    cache, teacher_adaptor(self.recipe, self.task), Objective(self.recipe.distillation), loader, config
                )

    def check_places(self, students: Iterable[tuple[ArmRun, Recipe]]) -> None:
        """Check that no checkpoint of the training runs would replace a folder that was not written by a run.

        ``students`` are the runs of the students and the recipe of each.

        Raises: ``RunError``.
        """
        runs = [
            (run, recipe, recipe.training, self.loader("distillation", recipe.training.batch_size))
            for run, recipe in students
        ]
        if self.recipe.training.teacher_cache is None and (fit := self.fit()) is not None:
            runs.append((teacher_run(self.recipe), self.recipe, fit, self.loader("teacher", fit.batch_size)))
        for run, recipe, length, one in runs:
            config = run.config(recipe)
            folder = Path(config.output_dir)
            before = latest(folder, warns=False) if self.resume else None
            evaluation = None if run.arm is Arm.TEACHER else self._evaluation(History(), length)
            check_places(folder, before, _plan(length, one, config), evaluation)

    def teacher(self, folder: Path | None = None) -> nn.Module | None:
        """Build the teacher, and train it if the task defines a training; checkpoints go to ``folder`` if given."""
        model, training = self.built_teacher(), self.fit()
        if model is not None and training is not None:
            loader = replace(self, seed=None).loader("teacher", training.batch_size)
            config = teacher_run(self.recipe).config(self.recipe, folder)
            self._announce("Training the teacher", "Teacher already trained", config, Budget.of(training, loader))
            self._train_on_labels(config, model, self.task.teacher_adaptor, loader, training)
        return model

    def built_teacher(self) -> nn.Module | None:
        """Return the teacher as the task builds it, seeded; ``None`` if the recipe's teacher is not the task's."""
        if not self.recipe.has_task_teacher:
            return None
        set_seed(self.recipe.seed)
        with prefixed(*([] if self.stage else ["task"])), busy("Building the teacher"):
            return self.task.build_teacher()

    def loaded_teacher(self, root: Path) -> nn.Module | None:
        """Return the teacher; if the recipe trains it, with the weights that another process trained in ``root``."""
        model = self.built_teacher()
        if model is not None and self.fit() is not None:
            folder = teacher_run(self.recipe).folder(root)
            if (checkpoint := latest(folder, warns=False)) is None:
                raise RunError(f"{folder} contains no checkpoint of the teacher. Run the recipe again with --resume")
            load_student(model, checkpoint)
        return model

    def fit(self) -> RecipeTraining | None:
        """Return the training settings of the teacher; ``None`` if the task builds a trained one, or none at all."""
        with prefixed("task"):
            fit = teacher_fit(self.task) if self.recipe.has_task_teacher else None
        if fit is None:
            return None
        with prefixed("task", "teacher_fit"):
            return RecipeTraining(
                lr=fit["learning_rate"], lr_schedule="linear", num_epochs=fit["epochs"], batch_size=fit["batch_size"]
            )

    @property
    def metric(self) -> MetricOf:
        """The metric that ranks checkpoints and arms."""
        return MetricOf.of(self.recipe, self.task)

    def train(self, arm: Arm, teacher: nn.Module | None, *, is_cached: bool = False) -> TrainedStudent:
        """Train the student of an arm. ``is_cached`` means that the distillation reads the teacher's outputs from a cache."""
        return self.no_teacher(teacher) if arm is Arm.NO_TEACHER else self.distilled(teacher, arm, is_cached=is_cached)

    def distilled(
        self, teacher: nn.Module | None, arm: Arm = Arm.DISTILLED, *, is_cached: bool = False
    ) -> TrainedStudent:
        """Distil the student; without ``teacher``, or if ``is_cached``, from cached outputs.

        ``teacher`` also provides initial weights, if the task requests it. In the arm ``shuffled``, teacher outputs are
        shifted within each batch.
        """
        training, student = self.recipe.training, self.student(teacher)
        teacher = None if is_cached else teacher
        loader = self.loader("distillation", training.batch_size)
        budget = Budget.of(training, loader)
        config = self._run(arm).config(self.recipe)
        shuffled = " from shuffled teacher outputs" if arm is Arm.SHUFFLED else ""
        ready = f"Student already distilled{shuffled}"
        before = self._announce(f"Distilling the student{shuffled}", ready, config, budget)
        plan = _plan(training, loader, config)
        prepared = preparation(self.task, student)
        history = self._history(student, plan, None if prepared is None else prepared.counted)
        done = self.distiller(teacher, student, [history, *self.observers], arm).train(
            make_optimizer(training, student.parameters()),
            loader,
            num_epochs=training.num_epochs,
            num_steps=training.num_steps,
            max_grad_norm=training.max_grad_norm,
            batch_postprocessor=prepared,
            evaluation=self._evaluation(history),
            resume=self._resume,
            resume_changed=self.resume_changed,
            **make_schedule(training, budget.total_steps),
        )
        return self._ended(student, history, done, before)

    def distiller(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        observers: Iterable[RunObserver] = (),
        arm: Arm = Arm.DISTILLED,
    ) -> GeneralDistiller:
        """Return the distiller from ``teacher``, from its cached outputs, or from the recipe's other teacher, to ``student``."""
        made = GeneralDistiller(
            self._run(arm).config(self.recipe),
            self._distillation,
            teacher if self.recipe.has_task_teacher else other_teacher(self.recipe, student),
            student,
            teacher_adaptor(self.recipe, self.task),
            self.task.student_adaptor,
            observers=observers,
            strict=True,
            show_progress=self.show_progress,
        )
        if made.teacher_cache is not None:
            made.teacher_cache.coding = self.coding or made.teacher_cache.coding
            with busy("Hashing the data"):
                made.teacher_cache.about = dict(fingerprint(self.recipe, self.task))
        if arm is Arm.SHUFFLED:
            made.rearrange = Shuffle(made.objective)
        return made

    def singletons(self, teacher: nn.Module | None, *, is_cached: bool = False) -> float:
        """Return the share of teacher outputs in the first batches that the arm ``shuffled`` cannot exchange.

        Raises: ``ConfigError`` if it is too large, or if these outputs cannot be shifted.
        """
        student, batch_size = self.student(teacher), self.recipe.training.batch_size
        made = self.distiller(None if is_cached else teacher, student, arm=Arm.SHUFFLED)
        pair = TrainingModule(student, made.adaptor_S, made.objective)
        side = given_teacher(made.model_T, made.adaptor_T, made.teacher_cache, made.objective, student)
        assert side is not None  # check_shuffled
        loader, shuffle = self.loader("distillation", batch_size), Shuffle(made.objective)
        with busy("Counting teacher outputs of the same class"):
            for own, theirs in first_outputs(pair, side, made.train_config, made.teacher_cache, loader, count=BATCHES):
                shuffle(own, theirs)
        check_share(shuffle.share, batch_size)
        return shuffle.share

    def no_teacher(self, teacher: nn.Module | None) -> TrainedStudent:
        """Train a student on labels alone, with steps, batch sizes and evaluations as in distillation.

        ``teacher`` only provides initial weights, the same as for the distilled student.
        """
        training, student = self.recipe.training, self.student(teacher)
        loader = self.loader("baseline", training.batch_size, like="distillation")
        config = self._run(Arm.NO_TEACHER).config(self.recipe)
        ready = "Student without distillation already trained"
        budget = Budget.of(training, loader)
        before = self._announce("Training the same student without distillation", ready, config, budget)
        history = self._history(student, _plan(training, loader, config))
        adaptor, evaluation = self.task.student_adaptor, self._evaluation(history)
        done = self._train_on_labels(
            config,
            student,
            adaptor,
            loader,
            training,
            evaluation=evaluation,
            observers=[history, *self.observers],
            actor=Acting(self.recipe.acting) if self.recipe.acting else None,
        )
        return self._ended(student, history, done, before)

    def _history(self, student: nn.Module, plan: Plan, counted: Callable[[], OnPolicyCounts] | None = None) -> History:
        if not self.recipe.training.evaluations:
            return History(None, plan.is_save, counted)
        sample = self.evaluation_loader("validation", student)
        return History(lambda model: self.evaluate(self.measured_form(model), sample), plan.is_save, counted)

    def _evaluation(self, history: History, training: RecipeTraining | None = None) -> Evaluation | None:
        training = training or self.recipe.training
        if not training.evaluations:
            return None
        ranks = training.best_checkpoint or training.early_stopping is not None
        return Evaluation(
            function=history.measure,
            times=training.evaluations,
            best=self.metric.name if ranks else None,
            mode="min" if self.metric.is_lower_better else "max",
            patience=training.early_stopping,
        )

    def _ended(self, student: nn.Module, history: History, done: RunResult, before: int) -> TrainedStudent:
        """Load the weights of the best evaluation into the student, if the recipe wants them."""
        best = done.best if self.recipe.training.best_checkpoint else None
        step = None if best is None else step_of(best)
        if best is not None and step != done.step:
            load_student(student, best)
        finished = self.transforms.finish(student)
        return TrainedStudent(finished, history, done.step, step, None if before else done.seconds, done.stop_reason)

    def load(self, run: RunFigures, teacher: nn.Module | None) -> nn.Module:
        """Return the student of a complete run. ``teacher`` only provides initial weights."""
        student = self.student(teacher)
        step = run.steps if run.best_step is None else run.best_step
        load_student(student, run.run.folder(Path(self.recipe.output_dir)) / f"step-{step}")
        return self.transforms.finish(student)

    def measured(self, *models: nn.Module) -> list[Figures]:
        """Return the speed and size of each model, on examples of the test part."""
        speeds = measure_speed(self.task, models, self.evaluation_loader("test", *models))
        return [
            Figures(count_parameters(model), speed.seconds_per_example, size_on_disk(model), speed.units_per_second)
            for model, speed in zip(models, speeds, strict=True)
        ]

    def student(self, teacher: nn.Module | None) -> nn.Module:
        """Return the untrained student, seeded and prepared; initialized from ``teacher`` if the task requests it.

        With cached teacher outputs, the teacher is built only for the initialization.
        """
        set_seed(self._seed)
        with prefixed(*([] if self.stage else ["task"])), busy("Building the student"):  # a stage adds the path itself
            student = self.task.build_student()
        if isinstance(self.task, StartsStudent) and self.task.starts_student:
            source = self.cached_teacher() if teacher is None else teacher
            with prefixed("task"), busy("Building the student"):
                self.task.start_student(student, source)
        if transforms := self.transforms:
            set_seed(self._seed + 1)  # the same draws whether a teacher was built in between or not
            student = transforms.prepare(student)
        return student

    @property
    def transforms(self) -> StudentTransforms:
        """The transforms of the student, in their initial state."""
        return StudentTransforms(self.recipe.student.transforms)

    def measured_form(self, student: nn.Module) -> nn.Module:
        """Return what an evaluation of a student in training measures: a finished copy, or itself if that is costly."""
        transforms = self.transforms
        return student if transforms.is_costly else transforms.finished_copy(student)

    def cached_teacher(self) -> nn.Module:
        """Build the teacher of the cache, from its checkpoint if the recipe trains it.

        Raises: ``RunError`` if the cache was built from another teacher.
        """
        assert self.recipe.training.teacher_cache is not None
        folder = Path(self.recipe.training.teacher_cache)
        teacher = replace(self, resume=True).teacher(folder)
        assert teacher is not None
        with busy("Checking the teacher cache"):
            check_teacher(folder, teacher)
        return teacher

    def loader(self, part: Part, batch_size: int, like: Part | None = None) -> DataLoader[Any]:
        """Return shuffled batches of one part of the data, seeded."""
        return training_loader(
            self.task,
            part,
            batch_size=batch_size,
            seed=self._seed,
            like=like or part,
            workers=self.recipe.training.num_workers,
        )

    @property
    def _distillation(self) -> DistillationConfig:
        """The distillation with the hooks that the recipe names."""
        distillation = self.recipe.distillation
        plugins = distillation.plugins.with_defaults(hooks=self.recipe.acting)
        return distillation.with_defaults(plugins=plugins) if self.recipe.acting else distillation

    @property
    def _seed(self) -> int:
        return self.recipe.seed if self.seed is None else self.seed

    def _run(self, arm: Arm) -> ArmRun:
        return ArmRun(arm, self._seed, self.stage if arm is Arm.DISTILLED else "")

    @property
    def _resume(self) -> str | None:
        return AUTO if self.resume else None

    def _announce(self, doing: str, ready: str, config: TrainingConfig, budget: Budget) -> int:
        """Announce a training run, and return the number of steps that an earlier process completed."""
        folder = latest(Path(config.output_dir), warns=False) if self.resume else None
        before, total = (folder and step_of(folder)) or 0, budget.total_steps
        seed = f", seed {self._seed}" if len(self.recipe.student_seeds) > 1 and self.seed is not None else ""
        seed += f", stage {self.stage}" if self.stage else ""
        if before >= total:
            self.say(f"{ready}{seed} ({total} optimizer steps in {config.output_dir})")
        else:
            self.say(f"{doing}{seed}: {total} optimizer steps{f', {before} already done' if before else ''}")
        return before

    def _train_on_labels(
        self,
        config: TrainingConfig,
        model: nn.Module,
        adaptor: Adaptor,
        loader: DataLoader[Any],
        training: RecipeTraining,
        **more: Any,
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
            **more,
        )

    def evaluate(self, model: nn.Module, loader: DataLoader[Any]) -> dict[str, float]:
        """Return the task's metrics of ``model`` over the batches of ``loader``."""
        return evaluate(self.task, model, loader, self.metric.name)

    def predict(self, model: nn.Module) -> Predictions:
        """Return the predictions of ``model`` for the test part."""
        return predict(self.task, model, self.evaluation_loader("test", model), self.metric.name)

    def validated(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of ``model`` on the validation examples; empty if the recipe has no evaluations."""
        if not self.recipe.training.evaluations:
            return {}
        return self.evaluate(model, self.evaluation_loader("validation", model))

    def evaluation_loader(self, part: Part, *models: nn.Module) -> DataLoader[Any]:
        """Return one part in order, in batches whose outputs fit the budget for each of ``models``.

        Of the validation part it is the sample that every evaluation uses.
        """
        return evaluation_loader(self.task, self.evaluation_data(part), batch_size=self.eval_batch(part, *models)[0])

    def evaluation_data(self, part: Part) -> Any:
        """Return the examples of one part; of the validation part at most ``evaluation_examples``, a fixed sample."""
        data, most = sized(self.task, part), self.recipe.training.evaluation_examples
        if part != "validation" or most is None or most >= len(data):
            return data
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most]
        return Subset(data, sorted(chosen.tolist()))

    def eval_batch(self, part: Part, *models: nn.Module) -> tuple[int, int]:
        """Return the batch size for evaluations of ``models``, and the size in bytes of the outputs for one such batch.

        Raises: ``RunError`` if the part is empty.
        """
        data = self.evaluation_data(part)
        each = max(eval_bytes(self.task, model, data) for model in models)
        count = self.recipe.training.eval_batch_size or eval_batch_size(each)
        return count, count * each
