"""Checks of a plan for probably unintended behaviour: dead terms, unused masks, settings without effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.config.recipe import RecipeTraining
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss import LossSum
from kdplug.contracts.task import Task
from kdplug.contracts.tree import SequenceKey, dotted, leaves
from kdplug.recipes.measure import count_parameters
from kdplug.recipes.preview.match import features
from kdplug.recipes.preview.sample import BATCHES, Sample
from kdplug.recipes.task import review

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.contracts.outputs import Loss
    from kdplug.objective.configured import ConfiguredTerms
    from kdplug.objective.loss_term import LossTerm


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Probably unintended behaviour of a run.

    ``check`` names the check; ``field`` is the path in the recipe, empty if there is none.
    """

    check: str
    field: str
    message: str


Check = Callable[["Sample"], Iterator[PlanWarning]]
"""A function that takes the models' outputs on the first batches and yields warnings."""


def dead_terms(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about each term whose weighted loss gives the student no gradient, or a non-finite one."""
    for term in sample.objective.terms:
        pull = sample.pulls.get(term.name)
        if pull is None:
            message = f"{term.name} has no effect: its schedule keeps its weight at 0 from start to end"
            yield PlanWarning("dead_term", "distillation", message)
        elif not math.isfinite(pull.norm) or not math.isfinite(pull.value):
            message = f"{term.name} is {pull.value:g} on the first batches, and its gradient's norm is {pull.norm:g}. Check the tensors that the loss reads for inf and nan"
            yield PlanWarning("not_finite", "distillation", message)
        elif not pull.is_alive:
            yield PlanWarning(
                "dead_term", "distillation", f"{term.name} gives the student no gradient: {_why(sample, term.name)}"
            )


def _why(sample: Sample, name: str) -> str:
    if not sample.pulls[name].is_counted:
        return (
            f"all items were masked or had an ignored label in {BATCHES} batches. Check for labels that are all ignored, and "
            "for an additive mask (0 = keep), which must be converted: (mask == 0)"
        )
    return (
        f"the loss does not depend on the student's trainable parameters, in {BATCHES} batches. Check for features that are "
        "detached, computed under no_grad, or from frozen layers only"
    )


_SHARE = 0.95
_LABEL_NAMES = ("label", "target")


def unshifted_labels(sample: Sample) -> Iterator[PlanWarning]:
    """Warn if a loss reads labels of a causal language model that are not shifted.

    The logits at a position predict the next token. A model's own loss shifts its labels; a loss with a ``labels``
    argument does not.
    """
    takers = list(_takers(sample))
    if not takers or not (name := _same_inputs(sample)):
        return
    message = (
        f"the labels equal the inputs {name!r} at each position, but logits predict the next token: "
        f"{' and '.join(takers)} would read each label one position early. Return labels shifted by one from the "
        "adaptor, with -100 at the end"
    )
    yield PlanWarning("unshifted_labels", "distillation", message)


def _takers(sample: Sample) -> Iterator[str]:
    if any(logits.logit_loss.shifts for _, logits in sample.objective.configured.on_logits()):
        yield "probability_shift"
    yield from dict.fromkeys(term.owner for term in sample.objective.configured.terms() if "labels" in term.inputs)


def _same_inputs(sample: Sample) -> str:
    """Return the name of an input that equals the labels; empty if there is none."""
    for labels in sample.of_student.labels or ():
        if labels.dim() != 2 or labels.shape[1] < 2:
            continue
        counts = labels >= 0
        for name, tensor in _integers(sample.batch):
            if tensor.shape != labels.shape or not counts.any():
                continue
            chosen = labels[counts]
            is_same = (chosen == tensor.to(labels.device)[counts]).float().mean() >= _SHARE
            if is_same and len(torch.unique(chosen)) > 2:  # a mask of ones and zeros is not text
                return name
    return ""


def _integers(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of each integer tensor in a batch, except those that may be labels."""
    for path, leaf in leaves(batch):
        is_integer = isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()
        if is_integer and not any(map(_may_be_labels, path)):
            yield dotted(path[-1:]) or "input", leaf


def _may_be_labels(step: Any) -> bool:
    if isinstance(step, SequenceKey):
        return step.idx > 0  # the first item of a batch is its input
    return any(word in str(step.key).casefold() for word in _LABEL_NAMES)


_MASKS = {"mask", "student_mask", "teacher_mask"}


def unused_masks(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about an unread ``inputs_mask``, a ``logits_mask`` without a loss on logits, and padding in such a loss.

    Without a loss on logits, an unread ``logits_mask`` is fine if matches have an ``inputs_mask`` and the student's own losses
    ignore the masked positions themselves. The objective itself warns about a mask on 2-D logits.
    """
    given = set(sample.of_student.given) | set(sample.of_teacher.given)
    terms = [term for term, _ in sample.objective.configured.on_features()]
    takers = [term for term in terms if _MASKS & set(term.inputs)]
    if "inputs_mask" in given and terms and not takers:
        message = (
            f"no term reads inputs_mask: none of {', '.join(sorted({t.owner for t in terms}))} takes a mask. If the data "
            "are padded, use a loss that takes a mask"
        )
        field = "terms" if sample.recipe.distillation.terms is not None else "intermediate_matches"
        yield PlanWarning("unused_mask", f"distillation.{field}", message)
    has_logits = any(sample.objective.configured.on_logits())
    is_missed = (bool(takers) and "inputs_mask" not in given) or _losses_need_mask(sample)
    if "logits_mask" in given and not has_logits and is_missed:
        message = (
            "no term reads logits_mask: no loss compares logits. Return inputs_mask for features, and losses that leave "
            "out masked positions"
        )
        field = "terms" if sample.recipe.distillation.terms is not None else "kd_loss_weight"
        yield PlanWarning("unused_mask", f"distillation.{field}", message)
    if has_logits and "logits_mask" not in given and _counts_padding(sample):
        message = (
            "inputs_mask masks some positions, but the losses on logits include these positions, because no adaptor returned "
            "logits_mask. Return logits_mask as well"
        )
        yield PlanWarning("padding_counts", "", message)


def _counts_padding(sample: Sample) -> bool:
    """Return whether logits are per position and ``inputs_mask`` masks some positions."""
    mask, logits = sample.of_student.inputs_mask, sample.of_student.logits
    if mask is None or logits is None or bool((mask != 0).all()):
        return False
    return any(len(one.shape) == 3 and one.shape[:2] == mask.shape for one in logits)


def _losses_need_mask(sample: Sample) -> bool:
    """Return whether the student's own losses are a term and may include positions that ``logits_mask`` masks."""
    outputs = sample.of_student
    if sample.objective.hard_label_loss is None or not outputs.losses:
        return False
    heads = [one.hidden if isinstance(one, FactoredLogits) else one for one in outputs.logits or ()]
    logits = [one for one in heads if isinstance(one, Tensor)]
    masks = outputs.logits_mask or ()
    fitting = all(mask.shape == one.shape[:-1] for mask, one in zip(masks, logits, strict=False))
    if len(masks) != len(logits) or not fitting:
        return True
    slopes = _slopes(outputs.losses, logits)
    return any(slope is None or slope[mask == 0].any() for slope, mask in zip(slopes, masks, strict=True))


def _slopes(losses: tuple[Loss, ...], logits: list[Tensor]) -> list[Tensor | None]:
    """Return the gradient of the losses with respect to each head's logits; ``None`` for unused logits.

    The graph is kept.
    """
    totals = [loss.total if isinstance(loss, LossSum) else loss.sum() for loss in losses]
    total = torch.stack(totals).sum()
    if not total.requires_grad or not all(one.requires_grad for one in logits):
        return [None] * len(logits)
    return list(torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True))


_KD_ONLY = ("probability_shift", "kd_loss_type")
_TEMPERATURE = ("temperature", "temperature_scheduler")
_CHECK = "no_effect"
_LARGE_RATE = 10.0


def idle_settings(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about settings that no term uses, terms of weight 0, and a teacher that no term reads."""
    given, configured = sample.recipe.distillation, sample.objective.configured
    for field, message in _unused(given, configured):
        if field in given.model_fields_set and getattr(given, field):
            yield PlanWarning(_CHECK, f"distillation.{field}", f"has no effect: {message}")
    if not configured.terms():
        way = (
            "kd_loss_weight is 0, and no match has a weight. Set kd_loss_weight, or add a match"
            if given.terms is None
            else "no term has a weight. Add a term, or set the weight of one"
        )
        message = f"the student learns nothing from the teacher: {way}"
        yield PlanWarning(_CHECK, "distillation", message)
    for written in given.written_terms():
        if not written.config.weight:
            path = ".".join(map(str, ("distillation", *written.place.path)))
            yield PlanWarning(_CHECK, path, "has no effect: its weight is 0")
    for place, one in enumerate(given.layer_map):
        if not one.weight:
            path = ".".join(map(str, ("distillation", *given.path_of_map(place))))
            yield PlanWarning(_CHECK, path, "has no effect: its weight is 0")


def _unused(given: DistillationConfig, configured: ConfiguredTerms) -> Iterator[tuple[str, str]]:
    """Yield each key of the distillation that no term uses, and the reason."""
    on_logits = "kd_loss_weight is 0" if given.terms is None else "no term compares logits"
    if not any(configured.on_logits()):
        yield from ((field, on_logits) for field in _KD_ONLY)
    takers = [term for term in configured.terms() if term.logits is not None or "temperature" in term.inputs]
    for field in _TEMPERATURE:
        if not takers:
            yield field, f"{on_logits}, and no loss on features takes a temperature"
        elif all(field in term.place.own for term in takers):
            yield field, "each term sets its own"


def _field(term: LossTerm, key: str) -> str:
    """The path of a term's key in the recipe."""
    is_shared = key in _TEMPERATURE and key not in term.place.own
    path = (key,) if is_shared else (*term.place.path, term.place.key(key))
    return ".".join(map(str, ("distillation", *path)))


def large_rates(training: RecipeTraining, fit: RecipeTraining | None) -> Iterator[PlanWarning]:
    """Warn about learning rates, of student or trained teacher, at which the first step destroys the weights."""
    for field, one in (("training.lr", training), ("task", fit)):
        if one is not None and one.lr > _LARGE_RATE:
            message = (
                f"the learning rate is {one.lr:g}: {one.optimizer} changes a weight by about that much for a gradient "
                "of 1, so the loss will probably diverge"
            )
            yield PlanWarning("large_learning_rate", field, message)


def unexpected_data(task: Task, sample: Sample) -> Iterator[PlanWarning]:
    """Warn about problems that the task finds in its data, and about data unlike the training data of the teacher."""
    for field, message in review(sample.recipe, task):
        yield PlanWarning("unexpected_data", field, message)
    for setting, message in sample.review:
        yield PlanWarning("unexpected_data", f"task.{setting}", message)


_TOLERANCE = 2e-2
"""Tolerance for the sum of a row of bfloat16 probabilities."""


def doubled_softmax(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about probabilities in a loss that takes scores, such as the kd loss, and scores in one that takes them.

    A loss's setting ``inputs`` declares which of the two it takes: ``scores`` or ``probs``.
    """
    settings = {term.name: term.loss.settings.get("inputs") for term in sample.config.terms or ()}
    for term, read in sample.objective.configured.on_features():
        takes, field = settings.get(term.name), _field(term, "loss")
        for side in ("student", "teacher"):
            tensors = [tensor for of, tensor in features(term, read, sample) if of == side]
            if takes == "scores" and any(map(is_probability, tensors)):
                message = (
                    f"{term.name}: the {side}'s rows are probabilities (they sum to 1), but {term.owner} takes scores "
                    "and applies a second softmax. Set inputs: probs"
                )
                yield PlanWarning("doubled_softmax", field, message)
            elif takes == "probs" and not all(map(is_probability, tensors)):
                message = (
                    f"{term.name}: {term.owner} takes probabilities, but the {side}'s rows are not probabilities (they "
                    "do not sum to 1). Set inputs: scores"
                )
                yield PlanWarning("missing_softmax", field, message)
    first = next(sample.objective.configured.on_logits(), None)
    if first is None:
        return
    for side, outputs in (("student", sample.of_student), ("teacher", sample.of_teacher)):
        if any(isinstance(logits, Tensor) and is_probability(logits) for logits in outputs.logits or ()):
            message = (
                f"the {side}'s logits are probabilities (they sum to 1), but {first[0].owner} applies a second softmax. "
                "Return the logits before the softmax"
            )
            yield PlanWarning("doubled_softmax", _field(first[0], "loss"), message)


def is_probability(tensor: Tensor) -> bool:
    """Return whether each row along the last axis is at least 0 and sums to 1; rows of zeros (padding) are allowed."""
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-1] < 2 or not tensor.numel():
        return False
    rows = tensor.detach().float()
    sums = rows.sum(dim=-1)
    is_one, is_empty = (sums - 1).abs() < _TOLERANCE, sums == 0
    return bool((rows >= 0).all() and is_one.any() and torch.logical_or(is_one, is_empty).all())


_MAPS = 4
"""Number of axes of feature maps, ``[batch, channels, height, width]``."""


def projected_axes(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about a projection of the last axis of hidden features with four axes, which is the width of feature maps."""
    for term, read in sample.objective.configured.on_features():
        if read.plan is None or read.plan.axis not in (-1, _MAPS - 1) or read.feature != "hidden":
            continue
        maps = (tensor for side, tensor in features(term, read, sample) if side == "student" and tensor.dim() == _MAPS)
        if (found := next(maps, None)) is not None:
            message = (
                f"{term.name}: proj maps the last axis of a feature of shape {list(found.shape)}: for maps [batch, channels, "
                f"height, width] use a projection with axis = 1, not {read.plan.owner}"
            )
            yield PlanWarning("projected_axis", _field(term, "proj"), message)


def unbalanced_temperature(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about a loss on logits without the factor T² combined with a loss on labels."""
    settings = {term.name: term.loss.settings for term in sample.config.terms or ()}
    for term, _ in sample.objective.configured.on_logits():
        temperature = term.temperature.base
        if temperature <= 1 or sample.objective.hard_label_loss is None or settings[term.name].get("t2") is not False:
            continue
        squared = temperature**2
        message = (
            f"{term.owner} omits the factor T², so at temperature {temperature:g} its gradient is about "
            f"1/{squared:g} of that at temperature 1, and labels outweigh the teacher accordingly. Set t2: true, or raise "
            f"{term.place.key('weight')} to about {squared * term.weight:g}"
        )
        yield PlanWarning("temperature", _field(term, "loss"), message)


def large_students(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about a student with more parameters than its teacher."""
    student, teacher = count_parameters(sample.student), count_parameters(sample.teacher)
    if student > teacher > 0:
        message = f"the student has {student:,} parameters, more than its teacher, which has {teacher:,}"
        yield PlanWarning("large_student", "task", message)
    depths = [_depth(model) for model in (sample.student, sample.teacher)]
    if None not in depths and depths[0] > depths[1]:  # type: ignore[operator]
        message = f"the student has {depths[0]} layers, more than its teacher, which has {depths[1]}"
        yield PlanWarning("large_student", "task", message)


def _depth(model: nn.Module) -> int | None:
    """Return the number of layers that a model's config declares, if it has one."""
    found = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return found if isinstance(found, int) else None


_MANY_CLASSES = 1000
_HIGH_TEMPERATURE = 2.0


def high_temperature(sample: Sample) -> Iterator[PlanWarning]:
    """Warn about a temperature above 2 over more than 1,000 classes, such as the tokens of a language model."""
    classes = max((one.shape[-1] for one in sample.of_teacher.logits or ()), default=0)
    for term, _ in sample.objective.configured.on_logits():
        temperature = term.temperature.base
        if temperature <= _HIGH_TEMPERATURE or classes <= _MANY_CLASSES:
            continue
        message = (
            f"temperature {temperature:g} over {classes:,} classes gives most of the probability to classes that the "
            "teacher considers very unlikely. Language models are usually distilled at temperature 1"
        )
        yield PlanWarning("high_temperature", _field(term, "temperature"), message)
