"""The task and the distillation that a recipe names, ready for use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.error_path import prefixed
from kdplug.config.layer import Layers, in_list
from kdplug.config.recipe import Recipe
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.contracts.loss import ACROSS_VOCABULARIES
from kdplug.contracts.task import PreparesBatches, ReadsAware, SelfChecking, SpansVocabularies, Task
from kdplug.engine.forward_state import modes
from kdplug.errors import ConfigError
from kdplug.host.component import Component
from kdplug.host.registry import cache_codecs, losses, tasks
from kdplug.objective.match_term import MatchTerm
from kdplug.objective.objective import Objective


class OnPolicyCounts(NamedTuple):
    """How many of ``batches`` were made anew."""

    anew: int
    batches: int

    def __str__(self) -> str:
        return f"{self.anew} of {self.batches} batches ({self.anew / max(self.batches, 1):.1%})"


class Preparation:
    """Hands each batch to the task, with the student in eval mode and without gradient, and counts what it makes anew."""

    def __init__(self, task: PreparesBatches, student: nn.Module) -> None:
        self._task = task
        self._student = student
        self._anew = 0
        self._batches = 0

    def __call__(self, batch: Any) -> Any:
        """What both models are shown."""
        with modes(evaluating=self._student), torch.no_grad():
            found = self._task.prepare_batch(batch, self._student)
        self._batches += 1
        self._anew += found is not batch
        return found

    def counted(self) -> OnPolicyCounts:
        """What there was since the last call."""
        found = OnPolicyCounts(self._anew, self._batches)
        self._anew = self._batches = 0
        return found


def preparation(task: Task, student: nn.Module) -> Preparation | None:
    """What batches go through, ``None`` where the task leaves them as they are."""
    return Preparation(task, student) if isinstance(task, PreparesBatches) and task.prepares_batches else None


def check_uncached(recipe: Recipe, task: Task) -> None:
    """Raises: ``ConfigError`` where the teacher is to be asked before the batches are made."""
    if isinstance(task, PreparesBatches) and task.prepares_batches and recipe.distillation.is_caching_logits:
        raise ConfigError(
            f"task {recipe.task.name!r} makes batches with the student while it is trained, so no cache can hold what the teacher "
            "says of them. Leave the cache out, or the setting of the task that asks for such batches",
            field="distillation.is_caching_logits",
        )


_MASKS = {"mask", "student_mask", "teacher_mask"}


def required_keys(objective: Objective) -> frozenset[str]:
    """The keys of either side's adaptor that a term reads; see ``ReadsAware.expect`` for features that go by path.

    A layer map that waits for its layers counts as reading a mask: its loss is not looked up yet.
    """
    found: set[str] = set()
    if objective.kd_loss is not None:
        found |= {"logits", "logits_mask"} | ({"labels"} if objective.kd_loss.wants_labels else set())
    if objective.hard_label_loss is not None:
        found.add("losses")
    for term, _, _ in objective.matches.terms():
        found |= set(_of_match(term))
    for waiting in objective.matches.waiting:
        found.add("inputs_mask")
        if waiting.feature == "attention" or None in (waiting.layer_S, waiting.layer_T):
            found.add(waiting.feature)
    return frozenset(found)


def _of_match(term: MatchTerm) -> Iterator[str]:
    if term.feature == "attention" or _by_index(term.layer_student) or _by_index(term.layer_teacher):
        yield term.feature
    if _MASKS & set(term.inputs):
        yield "inputs_mask"
    if term.wants_labels:
        yield "labels"


def _by_index(layers: Layers) -> bool:
    return any(isinstance(layer, int) for layer in in_list(layers))


def build_task(recipe: Recipe) -> tuple[Component, Task]:
    """The task of a recipe, and the component that it is.

    Raises: ``EntryError``, ``SettingError`` for what the recipe says of it; ``ConfigError`` where it lacks a method.
    """
    with prefixed("task"):
        component = tasks.build(recipe.task)
    task = component.target
    if not isinstance(task, Task):
        lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(task, name)]
        raise ConfigError(f"{component.entry.qualified} is no task: it lacks {', '.join(lacking)}", field="task")
    return component, task


class Resolved(NamedTuple):
    """A distillation with qualified names and every setting, the names of its terms, and the adaptor keys that they read."""

    distillation: DistillationConfig
    terms: list[str]
    reads: frozenset[str]


def resolve_distillation(recipe: Recipe) -> Resolved:
    """The distillation of a recipe, looked up.

    Raises: ``KdplugError`` with the path of what cannot be used.
    """
    with prefixed("distillation"):
        distillation = recipe.distillation.resolved()
        objective = Objective(distillation)
        return Resolved(distillation, [term.name for term in objective.terms], required_keys(objective))


def prepare(task: Task, reads: frozenset[str]) -> None:
    """Tell the task what the objective reads, and let it look for what would end the run later.

    Raises: ``KdplugError`` with the path of the task's setting.
    """
    with prefixed("task"):
        if isinstance(task, ReadsAware):
            task.expect(reads)
        if isinstance(task, SelfChecking):
            task.check()


def check_vocabularies(recipe: Recipe, task: Task) -> None:
    """See that nothing takes a class or a position of one side for that of the other. The task has checked itself before.

    Vocabularies of equal size would let all of this pass at every step, so that only what is learned would show it.

    Raises: ``ConfigError`` for the first setting that does.
    """
    if not isinstance(task, SpansVocabularies) or not (differ := task.vocabulary_difference):
        return
    for field, why, remedy in _mistaken(recipe):
        raise ConfigError(
            f"{why}, and student and teacher have vocabularies of their own: {differ}. {remedy}", field=field
        )


def _mistaken(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """The settings, why they cannot be meant, and what to do."""
    distillation, leave = recipe.distillation, "Leave it out"
    if distillation.intermediate_matches:
        yield "distillation.intermediate_matches", "compare features token by token", "Leave them out"
    if not distillation.kd_loss_weight and distillation.kd_loss_weight_scheduler is None:
        return
    entry = losses.build(distillation.kd_loss_type, slot="kd").entry
    if not getattr(entry.load(), ACROSS_VOCABULARIES, False):
        why = f"{entry.qualified} compares class by class"
        yield "distillation.kd_loss_type", why, "Take a loss that is declared across_vocabularies"
    if distillation.probability_shift:
        yield "distillation.probability_shift", "needs the teacher's logit at the student's label", leave
    if distillation.temperature_scheduler is not None:
        yield "distillation.temperature_scheduler", "may compare logits class by class", leave
    if distillation.padded_vocabulary == "drop":
        yield "distillation.padded_vocabulary", "says that the classes which one side alone has are padding", leave
    codec = recipe.training.teacher_cache_codec
    if codec is not None and distillation.is_caching_logits:
        made = cache_codecs.build(codec).target
        if isinstance(made, CacheCodec) and made.uses_temperature:  # of probabilities some are left out
            yield "training.teacher_cache_codec", f"{codec.name!r} may keep single classes", f"{leave}, or name another"
