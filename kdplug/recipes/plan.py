"""What a recipe would do, found out without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.distillers.session import teacher_cache
from kdplug.engine.cache_mass import KeptMass
from kdplug.engine.plan import make_plan
from kdplug.engine.process import process
from kdplug.objective.term import Term
from kdplug.recipes.bench import Bench
from kdplug.recipes.budget import Budget
from kdplug.recipes.field import names_fields_in_full
from kdplug.recipes.measure import count_parameters
from kdplug.recipes.optimizer import make_optimizer
from kdplug.recipes.plan_cache import kept_mass, thin_cache
from kdplug.recipes.plan_match import PlannedMatch, planned_matches
from kdplug.recipes.plan_memory import MemoryItem, memory
from kdplug.recipes.plan_sample import Sample, take_sample
from kdplug.recipes.preparation import check_uncached
from kdplug.recipes.saved_student import check_apart
from kdplug.recipes.stage import Stage, check_writable
from kdplug.recipes.task import build_task, prepare, resolve_distillation
from kdplug.recipes.vocabulary import check_vocabularies
from kdplug.recipes.warning import Check, PlanWarning
from kdplug.recipes.warning_gradient import dead_terms
from kdplug.recipes.warning_label import unshifted_labels
from kdplug.recipes.warning_mask import unused_masks
from kdplug.recipes.warning_setting import idle_settings, large_rates
from kdplug.recipes.warning_softmax import doubled_softmax
from kdplug.recipes.warning_temperature import unbalanced_temperature

CHECKS: tuple[Check, ...] = (
    dead_terms,
    unused_masks,
    doubled_softmax,
    unbalanced_temperature,
    unshifted_labels,
    thin_cache,
    idle_settings,
)
"""The rules that a plan is held against."""


@dataclass(frozen=True, slots=True)
class PlannedTerm:
    """A term: its weight at the start, at half and at the end of the run, and what it is worth before training.

    ``value`` is its mean before weighting on a first batch, ``gradient_norm`` the L2 norm of the gradient that the weighted
    term gives the student there; both are ``None`` where its weight stays 0.
    """

    name: str
    weights: tuple[float, float, float]
    value: float | None
    gradient_norm: float | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run would be. ``config`` is the distillation with every setting, layer maps written out.

    ``parameters`` counts those of teacher, student and projections; ``steps`` the optimizer steps of each training, 0 for a
    teacher that is trained already. ``kept_mass`` is that of the teacher's probability which a sparse teacher cache keeps, ``None``
    where it keeps all, or the teacher is not trained yet.
    """

    task: str
    about: str
    device: str
    precision: str
    batch_size: int
    config: DistillationConfig
    terms: list[PlannedTerm]
    matches: list[PlannedMatch]
    parameters: dict[str, int]
    steps: dict[str, int]
    memory: list[MemoryItem]
    kept_mass: KeptMass | None
    warnings: list[PlanWarning]

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON. A number that is not finite is text there."""
        data = {key: getattr(self, key) for key in ("task", "about", "device", "precision", "batch_size")}
        lists = {key: [asdict(one) for one in getattr(self, key)] for key in ("terms", "matches", "memory", "warnings")}
        found = {
            **data,
            "distillation": self.config.to_dict(),
            **lists,
            "parameters": self.parameters,
            "steps": self.steps,
            "memory_bytes": sum(item.bytes for item in self.memory),
            "kept_mass": None if self.kept_mass is None else asdict(self.kept_mass),
        }
        return {key: _finite(value) for key, value in found.items()}


@names_fields_in_full
def plan_recipe(recipe: Recipe) -> RunPlan:
    """Build the models of a recipe, show them its first batches, and say what a run would do. Nothing is written.

    The teacher is what the task builds, which may be untrained.

    Raises: ``KdplugError`` for what would keep the run from starting, or end it at its first step.
    """
    component, task = build_task(recipe)
    reads = resolve_distillation(recipe).reads
    make_optimizer(recipe.training, [nn.Parameter()])
    check_apart(recipe, task)
    check_writable(recipe)
    check_uncached(recipe, task)
    prepare(task, reads)
    check_vocabularies(recipe, task)
    bench = Bench(recipe, task, lambda _: None, show_progress=False)
    bench.check_cache()
    config = Stage.STUDENT.config(recipe)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        loader = bench.loader("distillation", recipe.training.batch_size)
        make_plan(loader, config, num_epochs=recipe.training.num_epochs, num_steps=recipe.training.num_steps)
        precision = config.precision if "precision" in config.model_fields_set else None
        with process(config.device, precision) as accelerator:
            total_steps = Budget.of(recipe.training, loader).total_steps
            sample = take_sample(recipe, bench, accelerator, total_steps)
            cache = teacher_cache(config, recipe.distillation)
            sample.kept_mass = kept_mass(cache, sample, is_trained=bench.fit() is None)
            found = [warning for check in CHECKS for warning in check(sample)]
            found += large_rates(recipe.training, bench.fit())
            items = memory(sample)
            device = str(accelerator.device)
    return RunPlan(
        task=component.entry.qualified,
        about=task.about(),
        device=device,
        precision=config.precision,
        batch_size=recipe.training.batch_size,
        config=sample.config,
        terms=[_term(sample, term) for term in sample.objective.terms],
        matches=planned_matches(sample),
        parameters=_parameters(sample),
        steps=_steps(bench, total_steps),
        memory=items,
        kept_mass=sample.kept_mass,
        warnings=[*found, *_python_warnings(told)],
    )


def _term(sample: Sample, term: Term) -> PlannedTerm:
    weights, pull = sample.weights(term), sample.pulls.get(term.name)
    return PlannedTerm(
        name=term.name,
        weights=(weights[0], weights[50], weights[100]),
        value=None if pull is None else pull.value,
        gradient_norm=None if pull is None else pull.norm,
    )


def _parameters(sample: Sample) -> dict[str, int]:
    models = {"teacher": sample.teacher, "student": sample.student, "projections": sample.objective}
    return {name: count_parameters(model) for name, model in models.items()}


def _steps(bench: Bench, total_steps: int) -> dict[str, int]:
    fit = bench.fit()
    teacher = 0 if fit is None else Budget.of(fit, bench.loader("teacher", fit.batch_size)).total_steps
    return {"teacher": teacher, "student": total_steps, "baseline": total_steps}


def _python_warnings(told: Iterable[warnings.WarningMessage]) -> list[PlanWarning]:
    """What was warned of on the way, each once: the run would warn of the same."""
    messages = dict.fromkeys(str(one.message) for one in told if issubclass(one.category, UserWarning))
    return [PlanWarning("said_by_the_run", "", message) for message in messages]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:  # infinite or no number
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value
