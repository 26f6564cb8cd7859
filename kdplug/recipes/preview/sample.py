"""Outputs, losses and gradients of both models on the first batches, before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.task import ReviewsTeacher
from kdplug.contracts.tree import tensors
from kdplug.distillers.session import given_teacher
from kdplug.engine.cache.content import RequiredOutputs, flatten
from kdplug.engine.cache.kept_mass import KeptMass
from kdplug.engine.example_ids import ExampleIds
from kdplug.engine.forward_state import materialize, modes
from kdplug.engine.teacher import AbsentModel, TeacherSide, check_apart
from kdplug.engine.training_module import Parts, TrainingModule, split, to_device
from kdplug.objective.objective import Objective
from kdplug.objective.report import LossReport, TermValue
from kdplug.objective.teacher_update import TeacherUpdate
from kdplug.objective.term import Term
from kdplug.recipes.arm import Arm
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.shuffle import Shuffle
from kdplug.recipes.task import preparation


@dataclass(frozen=True, slots=True)
class Pull:
    """A term's unweighted mean, and the L2 norm of the weighted mean's gradient over the student.

    ``is_counted`` is false if there was nothing to take a mean over.
    """

    value: float
    norm: float
    is_counted: bool

    @property
    def is_alive(self) -> bool:
        """True if the term's gradient changes the student, non-finite gradients included."""
        return self.norm != 0


def gradients(terms: Mapping[str, TermValue], student: nn.Module) -> dict[str, Pull]:
    """Run one backward pass per term. The graph is kept, and no ``grad`` is written."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return {
        name: Pull(float(term.value.detach()), _norm(term.weighted, parameters), _is_counted(term))
        for name, term in terms.items()
    }


def _norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """Return the gradient norm; 0 if the loss does not depend on the parameters."""
    if not loss.requires_grad or not parameters:
        return 0.0
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [
        torch.linalg.vector_norm(one.double() if one.device.type == "cpu" else one.float())
        for one in found
        if one is not None
    ]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _is_counted(term: TermValue) -> bool:
    return any(float(part.count) > 0 for part in term.parts)


BATCHES = 4
"""Batches tried before a term counts as dead; a single batch may have no labels, for example."""
_MOMENTS = (0.0, 0.5, 1.0)


@dataclass(slots=True, eq=False)
class Sample:
    """Both models, the objective with all projections built, and the outputs for the first batch.

    ``kept_mass`` is the probability mass that a sparse teacher keeps; ``None`` if it keeps all. ``config`` is the
    distillation with qualified names, all settings, and expanded layer maps. ``pulls`` maps each term's name to its
    value and gradient norm. ``review`` are the task's warnings about a trained teacher, each with a setting. ``also`` are
    the samples of other stages that read the same teacher cache.
    """

    recipe: Recipe
    config: DistillationConfig
    teacher: nn.Module
    student: nn.Module
    objective: Objective
    batch: Any
    of_teacher: Outputs
    of_student: Outputs
    total_steps: int
    activations: int
    total: Tensor
    kept_mass: KeptMass | None = None
    pulls: dict[str, Pull] = field(default_factory=dict)
    review: list[tuple[str, str]] = field(default_factory=list)
    also: list[Sample] = field(default_factory=list)

    def weights(self, term: Term) -> list[float]:
        """Return the weight of a term at 101 points from the run's start to its end."""
        return [term.schedule.at(at / 100, round(at / 100 * self.total_steps), self.total_steps) for at in range(101)]


@dataclass(slots=True, eq=False)
class _Models:
    """Both models with capture hooks installed."""

    pair: TrainingModule
    teacher: TeacherSide | None
    objective: Objective
    accelerator: Accelerator
    total_steps: int
    epoch_steps: int

    def outputs(self, parts: Parts) -> tuple[Outputs, Outputs]:
        """Return the outputs of the student, with gradient, and of the teacher for a batch."""
        with self.accelerator.autocast():
            teacher = self.of_teacher(parts)
            return Outputs.read(self.pair.outputs(parts.student, {}), "student"), teacher

    def of_teacher(self, parts: Parts) -> Outputs:
        """Return the teacher's outputs for a batch; empty ones without a teacher."""
        if self.teacher is None:
            return Outputs()
        with self.accelerator.autocast():
            return Outputs.read(self.teacher(parts.teacher, {}, parts.cache), "teacher")

    def loss(self, student: Outputs, teacher: Outputs, progress: float, example_ids: Any) -> LossReport:
        """Return the loss of these outputs at ``progress`` of the run; with a balancer, every term has weight 1."""
        step = min(round(progress * self.total_steps), self.total_steps - 1)
        balance = self.objective.balance
        with self.accelerator.autocast(), nullcontext() if balance is None else balance.unweighted():
            report: LossReport = self.objective(
                student=student,
                teacher=teacher,
                progress=progress,
                step=step,
                total_steps=self.total_steps,
                epoch=step // self.epoch_steps,
                example_ids=example_ids,
            )
        return report


def take_sample(recipe: Recipe, runner: RecipeRunner, accelerator: Accelerator, total_steps: int) -> Sample:
    """Build both models as the task returns them, without training, and run them on the first batches.

    Raises: ``KdplugError`` for an error that the run would raise in its first step.
    """
    teacher = runner.built_teacher()
    student = runner.student(teacher)
    distiller = runner.distiller(teacher, student)
    pair = TrainingModule(student, distiller.adaptor_S, distiller.objective)
    side = given_teacher(distiller.model_T, distiller.adaptor_T, None, distiller.objective, student)
    pair.to(accelerator.device)
    if side is not None:
        check_apart(side.model, student, distiller.objective)
        side.to(accelerator.device)
    if recipe.distillation.teacher_update is not None and side is not None:
        TeacherUpdate(recipe.distillation, side.model, student)  # checks that the architectures agree
    loader = runner.loader("distillation", recipe.training.batch_size)
    objective = distiller.objective
    ids = ExampleIds(objective, loader, prepared := preparation(runner.task, student))
    numbered, postprocess = ids.added_to(loader, prepared)
    batches = list(islice(numbered, BATCHES))
    model = None if side is None else side.model
    with modes(training=pair, evaluating=model), nullcontext() if side is None else side.frozen(student):
        if postprocess is not None:
            batches = list(map(postprocess, batches))
        ids.check_rows()
        if objective.needs_materialize:
            with _hooked(pair, side, objective):
                materialize(pair, side, batches[0], {}, accelerator.device, num_examples=ids.count_for(batches[0]))
        with _hooked(pair, side, objective):
            epoch_steps = math.ceil(len(loader) / recipe.training.gradient_accumulation_steps)
            models = _Models(pair, side, objective, accelerator, total_steps, epoch_steps)
            parts = [_on_device(batch, accelerator.device) for batch in batches]
            sample = _first(recipe, models, parts[0])
            sample.pulls = _pulls(models, parts, sample)
            if Arm.SHUFFLED in recipe.controls:
                Shuffle(objective)(sample.of_student, sample.of_teacher)  # raises an error if they cannot be shifted
            reviews = recipe.has_task_teacher and runner.fit() is None
            if reviews and isinstance(runner.task, ReviewsTeacher):
                with torch.no_grad():
                    rest = map(models.of_teacher, parts[1:])
                    sample.review = list(runner.task.review_teacher(chain([sample.of_teacher], rest)))
    return sample


@contextmanager
def _hooked(pair: TrainingModule, teacher: TeacherSide | None, objective: Objective) -> Iterator[None]:
    with pair.hooked(), nullcontext() if teacher is None else teacher.hooked(objective):
        yield


def _first(recipe: Recipe, models: _Models, parts: Parts) -> Sample:
    """Run the first batch as at the start of a run, and measure how many bytes its backward pass needs."""
    with saved_bytes(models.pair) as saved:
        student, teacher = models.outputs(parts)
        report = models.loss(student, teacher, 0.0, parts.ids)
    apart = {tensor.untyped_storage().data_ptr() for tensor in tensors(given(teacher))}
    return Sample(
        recipe=recipe,
        config=models.objective.config.resolved(),
        teacher=AbsentModel() if models.teacher is None else models.teacher.model,
        student=models.pair.student,
        objective=models.objective,
        batch=parts.student,
        of_teacher=teacher,
        of_student=student,
        total_steps=models.total_steps,
        activations=sum(size for address, size in saved.items() if address not in apart),
        total=report.total,
    )


def _pulls(models: _Models, batches: list[Parts], sample: Sample) -> dict[str, Pull]:
    """Return value and gradient norm of each term, at the first batch and progress where its gradient is not 0."""
    found: dict[str, Pull] = {}
    waiting = {term.name for term in models.objective.terms if any(sample.weights(term))}
    for place, parts in enumerate(batches):
        if not waiting:
            break
        student, teacher = models.outputs(parts) if place else (sample.of_student, sample.of_teacher)
        for moment in _MOMENTS:
            report = models.loss(student, teacher, moment, parts.ids)
            terms = {name: term for name, term in report.terms.items() if name in waiting and term.weight}
            for name, pull in gradients(terms, sample.student).items():
                if name not in found or pull.is_alive:
                    found[name] = pull
            waiting -= {name for name, pull in found.items() if pull.is_alive}
            if not waiting:
                break
    return found


def cache_bytes(sample: Sample, examples: int) -> int:
    """Estimate the size in bytes of a cache of the teacher's outputs that the objective reads, without a codec."""
    each: dict[str, float] = {}  # by name, since several stages may read the same
    for one in (sample, *sample.also):
        in_batch = min(one.recipe.training.batch_size, examples)
        content = flatten(one.of_teacher, RequiredOutputs.of(one.objective))
        each |= {name: _dense_bytes(value) / in_batch for name, value in content.tensors.items()}
    return math.ceil(sum(each.values()) * examples)


def _dense_bytes(value: Any) -> int:
    if isinstance(value, FactoredLogits):
        return math.prod(value.shape) * value.hidden.element_size()
    return sum(tensor.nbytes for tensor in tensors(value))


@contextmanager
def saved_bytes(module: nn.Module) -> Iterator[Mapping[int, int]]:
    """Collect, by address, the bytes that autograd saves for the backward pass of the block, without parameters."""
    held = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def given(outputs: Outputs) -> list[Any]:
    """Return the values that an adaptor returned."""
    return [getattr(outputs, key) for key in outputs.given]


def _on_device(batch: Any, device: torch.device) -> Parts:
    parts = split(batch)
    return Parts(*(to_device(one, device) for one in parts))
