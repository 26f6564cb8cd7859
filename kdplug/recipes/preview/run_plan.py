"""The result of ``kdplug plan``: terms, balancer, evaluations and stages of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdplug.config.distillation import DistillationConfig
from kdplug.engine.cache.kept_mass import KeptMass
from kdplug.objective.balance import Balance
from kdplug.recipes.preview.checks import PlanWarning
from kdplug.recipes.preview.match import PlannedMatch
from kdplug.recipes.preview.memory import MemoryItem


@dataclass(frozen=True, slots=True)
class PlannedTerm:
    """A term: its weight at the start, middle and end of the run, and its value before training.

    ``value`` is its unweighted mean on one of the first batches, ``gradient_norm`` the L2 norm of the weighted term's
    gradient over the student on that batch; both are ``None`` if its weight stays 0. With a balancer, ``weights`` are those
    that its factor multiplies, and the gradient is that of the unweighted term. ``share`` is the term's share of the
    gradient, if its weight is one.
    """

    name: str
    weights: tuple[float, float, float]
    value: float | None
    gradient_norm: float | None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class PlannedBalancer:
    """A balancer: the steps that it measures before training, and whether it needs the gradient of each term in every step.

    ``cost`` estimates both in optimizer steps of the whole run: a backward pass costs as much as two forward passes, and
    each term needs one.
    """

    name: str
    calibrate_steps: int
    gradients_in_steps: bool
    cost: float

    @classmethod
    def of(cls, balance: Balance | None, total_steps: int) -> PlannedBalancer | None:
        """Return the plan of an objective's balancer, if it has one."""
        if balance is None:
            return None
        calibrated = min(balance.calibrate_steps, total_steps)
        in_steps = balance.needs_gradients and not balance.calibrate_steps
        cost = calibrated * (1 + 2 * len(balance.terms)) / 3 + in_steps * total_steps * 2 * len(balance.terms) / 3
        return cls(balance.owner, calibrated, in_steps, cost)


@dataclass(frozen=True, slots=True)
class PlannedEvaluations:
    """Evaluations of one student: their ``count``, the ``examples`` of each, and the examples that it ``trained`` on.

    ``share`` estimates their share in the time of a control, if training on an example takes as long as evaluating three.
    """

    count: int
    examples: int
    trained: int

    @property
    def share(self) -> float:
        evaluated = self.count * self.examples
        return evaluated / (evaluated + 3 * self.trained)


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of the recipe: what it starts from and who teaches it, and the plan of its training."""

    name: str
    start: str | None
    teacher: str | None
    freeze: tuple[str, ...]
    frozen: int
    plan: RunPlan

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        keys = ("name", "start", "teacher", "frozen")
        return {**{key: getattr(self, key) for key in keys}, "freeze": list(self.freeze), **self.plan.to_data()}


_LISTS = ("terms", "matches", "memory", "whole_logits", "warnings")
_FIELDS = ("task", "about", "teacher", "device", "precision", "batch_size", "eval_batch_size")


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Preview of a run. ``teacher`` is the recipe's: ``task``, ``self``, ``copy``, ``none``, or an entry's name. ``config`` is the distillation with all settings and expanded layer maps.

    ``evaluation`` is the memory of the student's outputs for a batch of ``eval_batch_size`` test examples. It is not
    needed at the same time as the memory of a training batch, so it is not an item of ``memory``. ``parameters`` counts
    the parameters of teacher, student and projections, with student transforms those of the student that are trained and
    those of the finished one too; ``transforms`` and ``evaluators`` are components with qualified names, and ``acting`` the
    packages whose hooks act. ``steps`` the optimizer steps of one run of each arm, 0 for a
    teacher that is already trained. ``total_steps`` are those of all runs; students have one for each of ``seeds``.
    ``evaluations`` estimates the cost of the evaluations of one student. ``shared_cache`` is the size in bytes of the
    teacher outputs that the students of several seeds share; ``None`` if the teacher runs for each seed.
    ``whole_logits`` estimates the memory of each term that computes all logits of a batch from ``FactoredLogits`` at
    once; a part of it is also measured as activations. ``kept_mass`` is the teacher's probability mass in a sparse
    teacher cache; ``None`` if all of it is kept, or the teacher is not trained yet. ``stages`` are the stages of the
    recipe; terms, matches and memory are then those of the last one, ``steps`` those of all stages together, and
    ``evaluations`` those of a control.
    """

    task: str
    about: str
    teacher: str
    device: str
    precision: str
    batch_size: int
    config: DistillationConfig
    terms: list[PlannedTerm]
    balancer: PlannedBalancer | None
    matches: list[PlannedMatch]
    parameters: dict[str, int]
    steps: dict[str, int]
    seeds: list[int]
    total_steps: int
    evaluations: PlannedEvaluations
    shared_cache: int | None
    transforms: list[Any]
    evaluators: list[Any]
    acting: list[str]
    memory: list[MemoryItem]
    eval_batch_size: int
    evaluation: MemoryItem
    whole_logits: list[MemoryItem]
    kept_mass: KeptMass | None
    warnings: list[PlanWarning]
    stages: tuple[PlannedStage, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON. Non-finite numbers become strings."""
        data = {key: getattr(self, key) for key in _FIELDS}
        lists = {key: [asdict(one) for one in getattr(self, key)] for key in _LISTS}
        found = {
            **data,
            "distillation": self.config.to_dict(),
            "balancer": None if self.balancer is None else asdict(self.balancer),
            **lists,
            "parameters": self.parameters,
            "steps": self.steps,
            "seeds": self.seeds,
            "total_steps": self.total_steps,
            "evaluations": {**asdict(self.evaluations), "share": self.evaluations.share},
            "shared_cache": self.shared_cache,
            "student_transforms": self.transforms,
            "evaluators": self.evaluators,
            "acting_hooks": self.acting,
            "memory_bytes": sum(item.bytes for item in self.memory),
            "evaluation": asdict(self.evaluation),
            "kept_mass": None if self.kept_mass is None else asdict(self.kept_mass),
            **({"stages": [stage.to_data() for stage in self.stages]} if self.stages else {}),
        }
        return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:  # inf or nan
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value
