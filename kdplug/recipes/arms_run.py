"""Train and measure all students of a recipe: controls and distilled ones, for each seed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.teacher import SELF
from kdplug.contracts.task import PreparesBatches, Task
from kdplug.engine.cache.layout import padding_signatures
from kdplug.engine.observe.progress import display, several_runs
from kdplug.engine.training_module import split
from kdplug.errors import KdplugError
from kdplug.recipes.arm import PREDICTIONS, Arm, ArmRun, student_runs, teacher_run
from kdplug.recipes.cache_provenance import CacheProvenance
from kdplug.recipes.comparison import better_control
from kdplug.recipes.jobs import Work, WorkerError, train_side_by_side
from kdplug.recipes.measure import count_parameters, size_on_disk
from kdplug.recipes.output_folder import CACHE
from kdplug.recipes.preview.sample import Sample, cache_bytes
from kdplug.recipes.recipe_runner import RecipeRunner, TrainedStudent
from kdplug.recipes.result import RunFigures, read_rows
from kdplug.recipes.stages.result import StageResult
from kdplug.recipes.stages.shared_cache import fill_cache, with_coding
from kdplug.recipes.stages.student import StageStudents
from kdplug.recipes.stages.train import control_recipe, total_steps, train_stages
from kdplug.recipes.training import Budget
from kdplug.report.table import file_size

LARGEST_CACHE = 32 << 30
"""Maximum size in bytes of a teacher cache that a recipe with several seeds writes although it names none."""


@dataclass(slots=True)
class ArmsRun:
    """The runs of one recipe. ``model`` is the trained teacher, ``None`` if only its cached outputs are used.

    ``identity`` is a digest of everything that results depend on: complete runs with the same one are not repeated. If
    ``shares_cache``, the teacher's outputs are stored once for all distilled students. ``done`` holds the result of each
    complete run, and ``failed`` the error of each control that failed.
    """

    runner: RecipeRunner
    identity: str
    model: nn.Module | None
    origin: CacheProvenance | None
    shares_cache: bool = False
    jobs: int = 1
    done: dict[ArmRun, RunFigures] = field(default_factory=dict)
    failed: dict[ArmRun, str] = field(default_factory=dict)
    _is_warned: bool = False

    @staticmethod
    def may_share_cache(recipe: Recipe, task: Task, sample: Sample, say: Callable[[str], None]) -> bool:
        """Return whether several students of the recipe are distilled from one cache, and say why if not."""
        runs = len(recipe.student_seeds) * max(1, sum(stage.teacher is None for stage in recipe.planned_stages()))
        is_cached = recipe.training.teacher_cache is not None
        if runs == 1 or is_cached or recipe.teacher in (None, SELF):  # other seeds have other weights without adapters
            return False
        obstacles = {
            "teacher_update changes it": any(
                one.distillation.teacher_update is not None
                for one in (recipe, *(stage.recipe for stage in recipe.planned_stages()))
            ),
            "the task generates batches during distillation": isinstance(task, PreparesBatches)
            and task.prepares_batches,
            "its logits are scores of positions, which a cache cannot pad": _scores_positions(sample),
        }
        for obstacle, is_present in obstacles.items():
            if is_present:
                say(f"The teacher runs for each seed, because {obstacle}.")
                return False
        count = len(cast("Sized", task.data("distillation")))
        needed, free = cache_bytes(sample, count), shutil.disk_usage(_existing(Path(recipe.output_dir))).free
        if needed > min(LARGEST_CACHE, free // 2):
            say(
                f"The teacher runs for each seed, because its outputs would take {file_size(needed)} "
                f"({file_size(free)} are free). To store them, set training.teacher_cache to a folder."
            )
            return False
        return True

    @property
    def teacher(self) -> RunFigures | None:
        """The result of the teacher; ``None`` if it is not the task's, so that nothing measures it."""
        return self.done.get(teacher_run(self.runner.recipe))

    def run(self) -> None:
        """Complete every run that no earlier process completed.

        Raises: ``KdplugError`` if a distilled student cannot be trained; a control that fails is noted in ``failed``.
        """
        recipe, root = self.runner.recipe, Path(self.runner.recipe.output_dir)
        self._measure_teacher(root)
        waiting = []
        for run in student_runs(recipe):
            found = RunFigures.read(run.folder(root), self.identity) if self.runner.resume else None
            if found is None:
                waiting.append(run)
            else:
                self.done[run] = found
                self.runner.say(f"Already complete: {run} ({run.folder(root)})")
        if not waiting:
            return
        distils = any(run.arm.is_distilled for run in waiting)
        runner = self._cached() if distils and (self.shares_cache or self._fills_own_cache(waiting)) else None
        if (shuffled := next((run for run in waiting if run.arm is Arm.SHUFFLED), None)) is not None:
            first = replace(runner or self.runner, seed=shuffled.seed)
            first.singletons(self.model, is_cached=runner is not None)  # raises an error before the training
        steps = total_steps(self.runner)
        total, is_cached = steps * len(waiting), runner is not None
        if self.jobs > 1 and len(waiting) > 1:
            self._side_by_side(runner or self.runner, waiting, steps, is_cached=is_cached)
        else:
            with several_runs(total, shown=self.runner.show_progress and len(waiting) > 1):
                for run in waiting:
                    self._one(runner or self.runner, run, is_cached=is_cached)
        self.done = {run: self.done[run] for run in (teacher_run(recipe), *student_runs(recipe)) if run in self.done}

    def _one(self, runner: RecipeRunner, run: ArmRun, *, is_cached: bool) -> None:
        if run.arm is Arm.DISTILLED:
            self.done[run] = complete(runner, run, self.model, self.identity, is_cached=is_cached)
            return
        try:
            self.done[run] = complete(runner, run, self.model, self.identity, is_cached=is_cached)
        except Exception as error:  # the results of the other arms are still useful
            self.note_failure(run, f"{type(error).__name__}: {error}")
        self.warn_of_teacher()

    def _side_by_side(self, runner: RecipeRunner, waiting: list[ArmRun], steps: int, *, is_cached: bool) -> None:
        recipe, jobs = runner.recipe, min(self.jobs, len(waiting))
        runner.say(f"Training {len(waiting)} students, {jobs} at a time")
        work = Work(
            recipe=recipe.model_dump(mode="json", exclude_unset=True),
            identity=self.identity,
            teacher=Path(recipe.output_dir if self.origin is None else recipe.training.teacher_cache or ""),
            is_cached=is_cached,
            resume=runner.resume,
            resume_changed=runner.resume_changed,
            threads=torch.get_num_threads(),
        )
        with display(steps * len(waiting), shown=runner.show_progress, doing="training") as shown:
            train_side_by_side(
                work, waiting, jobs=jobs, say=runner.say, shown=shown, run_steps=steps, ended=self._ended
            )

    def _ended(self, run: ArmRun, error: WorkerError | None) -> None:
        """Store the result of a run that a worker process ended; raise the run's error unless it is a control."""
        if error is not None and run.arm is Arm.DISTILLED:
            error.message = f"{run}: {error.message}"
            raise error
        found = RunFigures.read(run.folder(Path(self.runner.recipe.output_dir)), self.identity)
        if error is not None or found is None:
            self.note_failure(run, str(error or "its worker process wrote no result"))
        else:
            self.done[run] = found
            self.runner.say(f"Complete: {run}")
        self.warn_of_teacher()

    def note_failure(self, run: ArmRun, error: str) -> None:
        """Store and print the error of a control that failed."""
        self.failed[run] = error
        self.runner.say(f"Warning: {run} failed, and the other arms continue: {error}")

    def warn_of_teacher(self) -> None:
        """Warn once if the students without distillation are better on the validation part than the teacher."""
        metric, teacher = self.runner.metric, self.teacher
        better = None if teacher is None else better_control(metric, self.done, teacher)
        if teacher is not None and better is not None and not self._is_warned:
            self._is_warned = True
            own = teacher.validation[metric.name]
            self.runner.say(
                f"Warning: on the validation part the teacher is worse than the student trained without it: {metric.name} "
                f"{own:.4f} against {better:.4f}, the mean over the seeds so far. Distillation is unlikely to help. Train "
                "the teacher for longer, or choose a better one"
            )

    def best(self) -> RunFigures:
        """Return the distilled run with the best validation metric, the first one if none has any."""
        metric, found = self.runner.metric, [one for run, one in self.done.items() if run.arm is Arm.DISTILLED]
        best = found[0]
        for one in found[1:]:
            value, other = (run.validation.get(metric.name, math.nan) for run in (one, best))
            if metric.is_better(value, other) or (math.isnan(other) and not math.isnan(value)):
                best = one
        return best

    def load(self, run: RunFigures) -> nn.Module:
        """Return the student of a complete run."""
        runner = replace(self.runner, seed=run.seed)
        if not runner.recipe.stages or run.arm is not Arm.DISTILLED:
            return runner.load(run, self.model)
        students = StageStudents(runner, self.model)
        return students.student(students.stages[-1])

    def _measure_teacher(self, root: Path) -> None:
        """Store the teacher's metrics: those of an earlier process, those stored with its cache, or new ones."""
        if not self.runner.recipe.has_task_teacher:
            return
        run = teacher_run(self.runner.recipe)
        found = RunFigures.read(run.folder(root), self.identity) if self.runner.resume else None
        if found is None:
            found, rows = self._of_origin(run) if self.model is None else teacher_figures(self.runner, self.model)
            found.write(run.folder(root), self.identity, rows)
        self.done[run] = found

    def _of_origin(self, run: ArmRun) -> tuple[RunFigures, list[dict[str, object]]]:
        """Return the teacher's figures and predictions that ``kdplug cache`` stored."""
        assert self.origin is not None
        folder = run.folder(Path(self.runner.recipe.training.teacher_cache or ""))
        found = RunFigures.read(folder, self.origin.identity)
        if found is None:
            return self.origin.run_figures(run), []
        return replace(found, seed=run.seed), list(read_rows(folder / PREDICTIONS))

    def _fills_own_cache(self, waiting: list[ArmRun]) -> bool:
        """Return whether the cache that the recipe names has to be filled before several students read it."""
        training = self.runner.recipe.training
        return training.teacher_cache is not None and self.origin is None and len(waiting) > 1

    def _cached(self) -> RecipeRunner | None:
        """Store the teacher's outputs, and return the runner that reads them; ``None`` if they cannot be cached."""
        runner, recipe = self.runner, self.runner.recipe
        changed = cached_recipe(recipe) if self.shares_cache else recipe
        cached = replace(runner, recipe=changed)
        try:
            summary = fill_cache(cached, self.model)
        except KdplugError as error:
            if not self.shares_cache:
                raise
            runner.say(f"The teacher runs for each seed, because its outputs cannot be cached: {error}")
            return None
        runner.say(
            f"Teacher outputs of {summary.examples:,} examples stored once for all seeds in {summary.path} "
            f"({file_size(summary.bytes)})"
        )
        return cached


def cached_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with a teacher cache in its ``output_dir``, which the distilled students of several seeds share."""
    training: dict[str, object] = {"teacher_cache": str(Path(recipe.output_dir) / CACHE)}
    if not recipe.distillation.is_caching_logits:  # these settings of a cache have no effect without it
        training |= {"teacher_cache_codec": None, "teacher_cache_dtype": None}
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update=training),
            "distillation": recipe.distillation.model_copy(update={"is_caching_logits": True}),
        }
    )


def complete(
    runner: RecipeRunner, run: ArmRun, teacher: nn.Module | None, identity: str, *, is_cached: bool = False
) -> RunFigures:
    """Train the student of a run, measure it on the test part, write both results to its folder, and return them."""
    runner, recipe = replace(runner, seed=run.seed), runner.recipe
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    singletons = runner.singletons(teacher, is_cached=is_cached) if run.arm is Arm.SHUFFLED else None
    stages: list[StageResult] = []
    if recipe.stages and run.arm is Arm.DISTILLED:
        trained, stages = train_stages(with_coding(StageStudents(runner, teacher)), is_cached=is_cached)
    else:
        runner = replace(runner, recipe=control_recipe(runner))
        trained = runner.train(run.arm, teacher, is_cached=is_cached)
    found = runner.predict(trained.model)
    data = {part: len(cast("Sized", runner.task.data(part))) for part in ("distillation", "baseline")}
    distils = run.arm is not Arm.NO_TEACHER
    own = [stage.recipe for stage in recipe.planned_stages()] or [recipe]
    uses_labels = any(one.distillation.hard_label_weight for one in own)
    labelled = data["baseline"] if not distils else None if uses_labels else 0
    parts = [(one.steps, training.training) for one, training in zip(stages, own, strict=True)] if stages else []
    figures = RunFigures(
        arm=run.arm,
        seed=run.seed,
        metrics=found.metrics,
        validation=_validation(runner, trained),
        best_step=trained.best_step,
        steps=trained.steps,
        examples=sum(
            examples_seen(steps, data["distillation"], training)
            for steps, training in parts or [(trained.steps, runner.recipe.training)]
        ),
        labelled=labelled,
        seconds=trained.seconds,
        peak_memory=_peak_memory(trained.model),
        parameters=count_parameters(trained.model),
        bytes=size_on_disk(trained.model),
        aggregate=found.aggregate if found.rows else None,
        target=found.target if found.rows else None,
        made=trained.history.made if trained.history.made.batches else None,
        stages=[one.to_data() for one in stages] or None,
        singletons=singletons,
        stop_reason=trained.stop_reason,
    )
    figures.write(run.folder(Path(runner.recipe.output_dir)), identity, found.rows)
    return figures


def teacher_figures(runner: RecipeRunner, model: nn.Module) -> tuple[RunFigures, list[dict[str, object]]]:
    """Return the figures of the teacher on the validation and test parts, and its predictions."""
    found, fit = runner.predict(model), runner.fit()
    steps = examples = labelled = 0
    if fit is not None:
        labelled = len(cast("Sized", runner.task.data("teacher")))
        steps = Budget.of(fit, replace(runner, seed=None).loader("teacher", fit.batch_size)).total_steps
        examples = examples_seen(steps, labelled, fit)
    figures = RunFigures(
        arm=Arm.TEACHER,
        seed=runner.recipe.seed,
        metrics=found.metrics,
        validation=runner.validated(model),
        best_step=None,
        steps=steps,
        examples=examples,
        labelled=None if fit is None else labelled,
        seconds=None,
        peak_memory=None,
        parameters=count_parameters(model),
        bytes=size_on_disk(model),
        aggregate=found.aggregate if found.rows else None,
        target=found.target if found.rows else None,
    )
    return figures, [dict(row) for row in found.rows]


def examples_seen(steps: int, count: int, training: RecipeTraining) -> int:
    """Return the number of examples, repeated ones included, in ``steps`` optimizer steps over ``count`` examples."""
    in_step = training.batch_size * training.gradient_accumulation_steps
    passes, rest = divmod(steps, math.ceil(count / in_step))
    return passes * count + min(rest * in_step, count)


def _validation(runner: RecipeRunner, trained: TrainedStudent) -> dict[str, float]:
    """Return the validation metrics of the finished student; evaluations during training may have measured another form."""
    return runner.validated(trained.model) if runner.transforms.is_costly else _used(trained)


def _used(trained: TrainedStudent) -> dict[str, float]:
    """Return the metrics of the evaluation whose weights the student has; empty without evaluations."""
    step = trained.steps if trained.best_step is None else trained.best_step
    return dict(trained.history.validation).get(step, {})


def _peak_memory(model: nn.Module) -> int | None:
    parameter = next(model.parameters(), None)
    return torch.cuda.max_memory_allocated(parameter.device) if parameter is not None and parameter.is_cuda else None


def _scores_positions(sample: Sample) -> bool:
    """Return whether each logit of the teacher seems to be the score of a token of its input, as for answer spans."""
    lengths = {tuple(one.shape) for one in padding_signatures(split(sample.batch).teacher).values()}
    return any(len(logits.shape) == 2 and tuple(logits.shape) in lengths for logits in sample.of_teacher.logits or ())


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
