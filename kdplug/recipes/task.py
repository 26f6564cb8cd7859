"""Build and check a recipe's task and distillation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.error_path import in_stage, prefixed
from kdplug.config.recipe import Recipe
from kdplug.config.term import WrittenTerm, compares_logits
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.contracts.loss import ACROSS_VOCABULARIES, declares
from kdplug.contracts.task import (
    Directed,
    PreparesBatches,
    ReadsAware,
    ReviewsData,
    SelfChecking,
    SpansVocabularies,
    Task,
    TeacherFit,
)
from kdplug.engine.forward_state import modes
from kdplug.engine.observe.activity import busy
from kdplug.errors import ConfigError
from kdplug.evidence.macro_f1 import MACRO_F1
from kdplug.host.component import Component
from kdplug.host.name import shown
from kdplug.host.registry import cache_codecs, losses, tasks
from kdplug.objective.objective import Objective

_LOWER_IS_BETTER = re.compile(r"loss|error|perplexity|bits_per|(^|_)(nll|mse|rmse|mae|brier|ece|wer|cer)($|_)")
"""Names of metrics, other than a task's own, of which a lower value is better."""


class OnPolicyCounts(NamedTuple):
    """Counts of all batches, and of those that the task generated or changed."""

    generated: int
    batches: int

    def __str__(self) -> str:
        generated, batches = self
        return f"{generated} of {batches} batches ({generated / max(batches, 1):.1%})"


@dataclass(frozen=True, slots=True)
class MetricOf:
    """The metric that ranks checkpoints and arms of a recipe. ``is_own`` is true for the task's main metric."""

    name: str
    is_lower_better: bool
    is_own: bool

    @classmethod
    def of(cls, recipe: Recipe, task: Task) -> MetricOf:
        """Return the recipe's metric. If it is not the task's main metric, its direction is inferred from its name."""
        name = recipe.metric or task.metric
        if name == task.metric:
            return cls(name, isinstance(task, Directed) and task.is_lower_better, is_own=True)
        return cls(name, bool(_LOWER_IS_BETTER.search(name)), is_own=False)

    def is_better(self, value: float, other: float) -> bool:
        """Return whether ``value`` is better than ``other``; false if one of them is nan."""
        return value < other if self.is_lower_better else value > other


class Preparation:
    """Calls the task's ``prepare_batch``, with the student in eval mode and without gradient; counts replaced batches."""

    def __init__(self, task: PreparesBatches, student: nn.Module) -> None:
        self._task = task
        self._student = student
        self._generated = 0
        self._batches = 0

    def __call__(self, batch: Any) -> Any:
        """Return the batch for both models."""
        with modes(evaluating=self._student), torch.no_grad():
            found = self._task.prepare_batch(batch, self._student)
        self._batches += 1
        self._generated += found is not batch
        return found

    def counted(self) -> OnPolicyCounts:
        """Return the counts since the last call."""
        found = OnPolicyCounts(self._generated, self._batches)
        self._generated = self._batches = 0
        return found


def preparation(task: Task, student: nn.Module) -> Preparation | None:
    """Return the batch preparation of a task; ``None`` if the task leaves batches unchanged."""
    return Preparation(task, student) if isinstance(task, PreparesBatches) and task.prepares_batches else None


def check_uncached(recipe: Recipe, task: Task) -> None:
    """Raise ``ConfigError`` if teacher outputs are cached but the task generates its batches during training."""
    if isinstance(task, PreparesBatches) and task.prepares_batches and recipe.distillation.is_caching_logits:
        raise ConfigError(
            f"task {recipe.task.name!r} generates batches with the student during training, so teacher outputs cannot "
            "be cached. Set is_caching_logits to false, or disable the task's setting that generates batches",
            field="distillation.is_caching_logits",
        )


def required_keys(objective: Objective) -> frozenset[str]:
    """Return the adaptor keys that the terms read; see ``ReadsAware.expect`` for features captured by module path.

    A layer map whose layers are not known yet counts as reading a mask, because its loss is not built yet.
    """
    found: set[str] = set()
    for term in objective.configured.terms():
        found |= term.reads
    if objective.hard_label_loss is not None:
        found.add("losses")
    for waiting in objective.configured.waiting:
        found.add("inputs_mask")
        if waiting.feature == "attention" or None in (waiting.layer_S, waiting.layer_T):
            found.add(waiting.feature)
    return frozenset(found)


def _mistaken_term(written: WrittenTerm) -> Iterator[tuple[str, str, str]]:
    term, _, place = written
    if term.slot == "match":
        yield ".".join(map(str, ("distillation", *place.path))), "compares features token by token", "Remove this term"
        return
    component = losses.build(term.loss, slot="kd")
    entry = component.entry
    if not compares_logits(term, component.inputs):
        return
    if not declares(entry.load(), ACROSS_VOCABULARIES):
        field = ".".join(map(str, ("distillation", *place.path, place.key("loss"))))
        yield field, f"{entry.qualified} compares class by class", "Use a loss that is declared across_vocabularies"
    if "temperature_scheduler" in place.own:
        field = ".".join(map(str, ("distillation", *place.path, "temperature_scheduler")))
        yield field, "may compare logits class by class", "Remove this key"


def build_task(recipe: Recipe) -> tuple[Component, Task]:
    """Return the component that the recipe's ``task`` names, and the task itself.

    Raises: ``EntryError``, ``SettingError`` for a wrong name or setting; ``ConfigError`` if the task lacks a method.
    """
    with prefixed("task"):
        component = tasks.build(recipe.task)
    task = component.target
    if not isinstance(task, Task):
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        raise ConfigError(f"{component.entry.qualified} is not a task: it lacks {', '.join(lacking)}", field="task")
    return component, task


def teacher_fit(task: Task) -> TeacherFit | None:
    """Return the settings of the teacher's training; ``None`` if the task builds a trained teacher.

    Raises: ``ConfigError`` if a key is missing.
    """
    fit = task.teacher_fit()
    if fit is None or (isinstance(fit, Mapping) and TeacherFit.__required_keys__ <= fit.keys()):
        return fit
    raise ConfigError(
        f"must return epochs, batch_size and learning_rate, or None for a trained teacher, got {shown(fit)}",
        field="teacher_fit",
    )


class Resolved(NamedTuple):
    """A distillation with qualified names and all settings, its term names, and the adaptor keys that they read."""

    distillation: DistillationConfig
    terms: list[str]
    reads: frozenset[str]


def resolve_distillation(recipe: Recipe) -> Resolved:
    """Look up every name in the recipe's distillation.

    Raises: ``KdplugError`` with the path of the field that cannot be used.
    """
    with prefixed("distillation"):
        distillation = recipe.distillation.resolved()
        objective = Objective(distillation)
        read = objective.reads_of_teachers()
    if read and recipe.teacher is None:
        terms = ", ".join(f"{name} ({', '.join(inputs)})" for name, inputs in read.items())
        raise ConfigError(
            f"is none, and these terms read a teacher: {terms}. Remove this key, or use losses that request nothing of a "
            "teacher, or teacher: student in the term",
            field="teacher",
        )
    with prefixed("distillation"):
        return Resolved(distillation, [term.name for term in objective.terms], required_keys(objective))


def required_reads(recipe: Recipe) -> frozenset[str]:
    """Return the adaptor keys that the objective reads; with stages, those that any of them reads."""
    if not recipe.stages:
        return resolve_distillation(recipe).reads
    found: frozenset[str] = frozenset()
    for stage in recipe.planned_stages():
        with in_stage(stage):
            found |= resolve_distillation(stage.recipe).reads
    return found


def prepare(task: Task, reads: frozenset[str]) -> None:
    """Pass the task the adaptor keys that the objective reads, and run the task's own checks.

    Raises: ``KdplugError`` with the path of the task's setting.
    """
    with prefixed("task"), busy("Reading the data"):
        if isinstance(task, ReadsAware):
            task.expect(reads)
        if isinstance(task, SelfChecking):
            task.check()


def check_vocabularies(recipe: Recipe, task: Task) -> None:
    """Check that no setting compares classes or positions of two different vocabularies. Call ``prepare`` first.

    If both vocabularies have the same size, training would run without an error, but its result would be meaningless.

    Raises: ``ConfigError`` for the first such setting.
    """
    if not isinstance(task, SpansVocabularies) or not (differ := task.vocabulary_difference):
        return
    for field, why, remedy in _mistaken(recipe):
        raise ConfigError(
            f"{why}, but student and teacher have different vocabularies: {differ}. {remedy}", field=field
        )


def _mistaken(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield the field of each wrong setting, the reason, and the remedy."""
    distillation, remove = recipe.distillation, "Remove this key"
    terms = [written for written in distillation.written_terms() if written.config.weight]
    for written in terms:
        yield from _mistaken_term(written)
    if not any(term.slot == "kd" for term, _, _ in terms):
        return
    if distillation.probability_shift:
        yield "distillation.probability_shift", "needs the teacher's logit at the student's label", remove
    if distillation.temperature_scheduler is not None:
        yield "distillation.temperature_scheduler", "may compare logits class by class", remove
    if distillation.padded_vocabulary == "drop":
        yield "distillation.padded_vocabulary", "treats classes that only one side has as padding", remove
    codec = recipe.training.teacher_cache_codec
    if codec is not None and distillation.is_caching_logits:
        made = cache_codecs.build(codec).target
        if isinstance(made, CacheCodec) and made.uses_temperature:  # it drops some probabilities
            yield (
                "training.teacher_cache_codec",
                f"{codec.name!r} may store single classes",
                f"{remove}, or use another codec",
            )


def review(recipe: Recipe, task: Task) -> Iterator[tuple[str, str]]:
    """Yield a path in the recipe and a warning: for a metric without a verdict, and for problems in the task's data."""
    metric = MetricOf.of(recipe, task)
    if not metric.is_own and metric.name != MACRO_F1:
        message = (
            f"the task scores examples for {task.metric} only, so there will be an interval over seeds but no verdict. Remove "
            "metric to get one"
        )
        yield "metric", message
    with prefixed("task"):
        for setting, message in task.review_data() if isinstance(task, ReviewsData) else ():
            yield f"task.{setting}", message
