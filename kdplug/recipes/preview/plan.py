"""``kdplug plan``: preview a recipe without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kdplug.config.error_path import in_stage, qualify_errors
from kdplug.config.recipe import Recipe
from kdplug.config.stage import Stage
from kdplug.distillers.session import teacher_cache
from kdplug.engine.cache.builder import take_heads
from kdplug.engine.cache.cache import TeacherCache
from kdplug.engine.cache.coding import encode
from kdplug.engine.cache.content import RequiredOutputs, flatten
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.cache.kept_mass import KeptMass
from kdplug.engine.cache.report import CacheReport
from kdplug.engine.cache.shard import CodingStats
from kdplug.engine.observe.activity import busy
from kdplug.engine.parallel.process import process
from kdplug.engine.run import make_plan
from kdplug.objective.teacher import STUDENT
from kdplug.objective.term import Term
from kdplug.recipes.arm import Arm, distilled_run, student_runs
from kdplug.recipes.arms_run import ArmsRun, examples_seen
from kdplug.recipes.measure import count_parameters
from kdplug.recipes.other_teacher import shown_teacher
from kdplug.recipes.preflight import check_recipe
from kdplug.recipes.preview.checks import (
    Check,
    PlanWarning,
    dead_terms,
    doubled_softmax,
    high_temperature,
    idle_settings,
    large_rates,
    large_students,
    projected_axes,
    unbalanced_temperature,
    unexpected_data,
    unshifted_labels,
    unused_masks,
)
from kdplug.recipes.preview.match import planned_matches
from kdplug.recipes.preview.memory import MemoryItem, memory
from kdplug.recipes.preview.run_plan import PlannedBalancer, PlannedEvaluations, PlannedStage, PlannedTerm, RunPlan
from kdplug.recipes.preview.sample import Sample, cache_bytes, take_sample
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.stages.record import unranked_student
from kdplug.recipes.stages.shared_cache import check_cache, with_coding
from kdplug.recipes.stages.student import StageStudents, frozen_parameters
from kdplug.recipes.stages.train import control_recipe, total_steps
from kdplug.recipes.task import required_keys
from kdplug.recipes.training import Budget
from kdplug.report.record import record_evaluators, record_transforms, resolved_teacher


def kept_mass(cache: TeacherCache | None, sample: Sample, *, is_trained: bool) -> KeptMass | None:
    """Return the probability mass that the losses on logits read, from the cache if it exists, else from the first batch.

    It is ``None`` if all classes are kept, or if the teacher is not trained yet, because its distribution is then
    meaningless.
    """
    teacher = sample.of_teacher
    if all(term.teacher == STUDENT for term, _ in sample.objective.configured.on_logits()):
        return None
    if cache is None or cache.coding is None:
        return KeptMass.of_heads(teacher.logits or ())
    if cache.path is not None and CacheFolder(cache.path).manifest() is not None:
        return KeptMass.of_cache(cache.coding, CacheReport.read(cache.path).tally)
    if not is_trained:
        return None
    heads = take_heads(flatten(teacher, RequiredOutputs.of(sample.objective)), teacher)
    tallies = [encode(cache.coding, name, logits, mask, 0).tally for name, (logits, mask) in heads.items()]
    return KeptMass.of_cache(cache.coding, CodingStats.sum(tallies))


def thin_cache(sample: Sample) -> Iterator[PlanWarning]:
    """Warn if the classes kept for a sparse teacher hold little of its distribution at the loss temperature."""
    if sample.kept_mass is not None and (message := sample.kept_mass.warning) is not None:
        field = "training.teacher_cache_codec" if sample.recipe.training.teacher_cache_codec else "task"
        yield PlanWarning("kept_mass", field, message)


CHECKS: tuple[Check, ...] = (
    dead_terms,
    unused_masks,
    doubled_softmax,
    projected_axes,
    unbalanced_temperature,
    unshifted_labels,
    thin_cache,
    idle_settings,
    large_students,
    high_temperature,
)
"""The checks that a plan runs."""


@qualify_errors
def plan_recipe(recipe: Recipe) -> RunPlan:
    """Build a recipe's models, run them on its first batches, and report what a run would do. Nothing is written.

    The teacher is used as the task builds it, so it may be untrained.

    Raises: ``KdplugError`` for an error that a run would raise at the start or in its first step.
    """
    component, task, _ = check_recipe(recipe)
    runner = RecipeRunner(recipe, task, lambda _: None, show_progress=False)
    check_cache(runner)
    if not recipe.stages:
        return _planned(component.entry.qualified, runner)[0]
    students = with_coding(StageStudents(runner, None, is_untrained=True))
    stages, shared = [], []
    for stage in students.stages:
        with in_stage(stage):
            plan, sample = _planned(component.entry.qualified, students.stage_runner(stage), stage)
        if students.shares_cache(stage):
            shared.append(sample)
        frozen = sum(one.numel() for one in frozen_parameters(sample.student, stage).values())
        stages.append(PlannedStage(stage.name, stage.start, stage.teacher, stage.freeze, frozen, plan))
    if shared:
        shared[0].also = shared[1:]
    total = total_steps(runner)
    steps = _steps(runner, total)
    return replace(
        stages[-1].plan,
        steps=steps,
        total_steps=steps[Arm.TEACHER] + total * len(student_runs(recipe)),
        evaluations=_evaluations(replace(runner, recipe=control_recipe(runner)), total),
        shared_cache=_shared_cache(runner, shared[0]) if shared else None,
        warnings=[warning for stage in stages for warning in stage.plan.warnings],
        stages=tuple(stages),
    )


def _planned(name: str, runner: RecipeRunner, stage: Stage | None = None) -> tuple[RunPlan, Sample]:
    """Plan one distillation; ``stage`` is the stage of the recipe that it is."""
    recipe, task = runner.recipe, runner.task
    config = distilled_run(recipe).config(recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loader = runner.loader("distillation", recipe.training.batch_size)
        make_plan(loader, config, num_epochs=recipe.training.num_epochs, num_steps=recipe.training.num_steps)
        precision = config.precision if "precision" in config.model_fields_set else None
        with process(config.device, precision) as accelerator:
            total_steps = Budget.of(recipe.training, loader).total_steps
            with busy("Running the first batches"):
                sample = take_sample(recipe, runner, accelerator, total_steps)
            cache = teacher_cache(config, recipe.distillation)
            sample.kept_mass = kept_mass(cache, sample, is_trained=runner.fit() is None)
            with busy("Reviewing the recipe and the data"):
                found = [warning for check in CHECKS for warning in check(sample)]
                found += large_rates(recipe.training, runner.fit())
                found += unexpected_data(task, sample)
            eval_size, eval_bytes = runner.eval_batch(
                "validation" if recipe.training.evaluations else "test", sample.student
            )
            shared = _shared_cache(runner, sample)
            parameters = _parameters(sample, runner)
            with busy("Measuring the memory"):
                items = memory(sample)
            device = str(accelerator.device)
    if Arm.SHUFFLED in recipe.controls and runner.fit() is None:
        runner.singletons(sample.teacher)
    steps = _steps(runner, total_steps)
    warned = [*found, *_python_warnings(caught)]
    if stage is not None:
        warned = _of_stage(stage, sample, warned)
    plan = RunPlan(
        task=name,
        about=task.about(),
        teacher=_teacher(recipe),
        device=device,
        precision=config.precision,
        batch_size=recipe.training.batch_size,
        config=sample.config,
        terms=[_term(sample, term) for term in sample.objective.terms],
        balancer=PlannedBalancer.of(sample.objective.balance, total_steps),
        matches=planned_matches(sample),
        parameters=parameters,
        steps=steps,
        seeds=list(recipe.student_seeds),
        total_steps=steps[Arm.TEACHER] * len(recipe.teacher_seeds) + total_steps * len(student_runs(recipe)),
        evaluations=_evaluations(runner, total_steps),
        shared_cache=shared,
        transforms=record_transforms(recipe),
        evaluators=record_evaluators(recipe),
        acting=list(recipe.acting),
        memory=items,
        eval_batch_size=eval_size,
        evaluation=MemoryItem("evaluation", eval_bytes, f"measured for one example, times {eval_size}"),
        whole_logits=_whole_logits(sample),
        kept_mass=sample.kept_mass,
        warnings=warned,
    )
    return plan, sample


def _of_stage(stage: Stage, sample: Sample, warnings: Iterable[PlanWarning]) -> list[PlanWarning]:
    """Return the warnings of a stage with their full paths, without those about inherited settings without effect."""
    own = {f"distillation.{key}" for key in stage.own_keys}
    found = [one for one in warnings if one.check != "no_effect" or one.field == "distillation" or one.field in own]
    if (message := unranked_student(stage, required_keys(sample.objective))) is not None:
        found.append(PlanWarning("unranked_student", "training.best_checkpoint", message))
    return [replace(one, field=".".join(filter(None, ("stages", str(stage.place), one.field)))) for one in found]


def _teacher(recipe: Recipe) -> str:
    external = resolved_teacher(recipe)
    return shown_teacher(recipe) if external is None else str(external["name"])


def _term(sample: Sample, term: Term) -> PlannedTerm:
    weights, pull = sample.weights(term), sample.pulls.get(term.name)
    return PlannedTerm(
        name=term.name,
        weights=(weights[0], weights[50], weights[100]),
        value=None if pull is None else pull.value,
        gradient_norm=None if pull is None else pull.norm,
        share=getattr(term, "share", None),
    )


def _whole_logits(sample: Sample) -> list[MemoryItem]:
    how = "computed: both sides, a softmax and a gradient of a batch"
    terms = sample.objective.configured.on_logits()
    return [
        MemoryItem(term.name, logits.logit_loss.largest, how) for term, logits in terms if logits.logit_loss.largest
    ]


def _parameters(sample: Sample, runner: RecipeRunner) -> dict[str, int]:
    models = {"teacher": sample.teacher, "student": sample.student, "projections": sample.objective}
    found = {name: count_parameters(model) for name, model in models.items()}
    if transforms := runner.transforms:
        trained = sum(one.numel() for one in sample.student.parameters() if one.requires_grad)
        found |= {
            "student, trained": trained,
            "student, finished": count_parameters(transforms.finished_copy(sample.student)),
        }
    return found


def _steps(runner: RecipeRunner, total_steps: int) -> dict[str, int]:
    fit = runner.fit()
    teacher = 0 if fit is None else Budget.of(fit, runner.loader("teacher", fit.batch_size)).total_steps
    return {Arm.TEACHER.value: teacher, **{run.arm.value: total_steps for run in student_runs(runner.recipe)}}


def _evaluations(runner: RecipeRunner, total_steps: int) -> PlannedEvaluations:
    training = runner.recipe.training
    trained = examples_seen(total_steps, len(runner.task.data("distillation")), training)  # type: ignore[arg-type]
    examples = len(runner.evaluation_data("validation")) if training.evaluations else 0
    return PlannedEvaluations(min(training.evaluations, total_steps), examples, trained)


def _shared_cache(runner: RecipeRunner, sample: Sample) -> int | None:
    if not ArmsRun.may_share_cache(runner.recipe, runner.task, sample, lambda _: None):
        return None
    examples = len(runner.task.data("distillation"))  # type: ignore[arg-type]
    return cache_bytes(sample, examples) * len(runner.recipe.teacher_seeds)


def _python_warnings(caught: Iterable[warnings.WarningMessage]) -> list[PlanWarning]:
    """Return the caught warnings without duplicates; a run would raise the same ones."""
    messages = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))
    return [PlanWarning("said_by_the_run", "", message) for message in messages]
