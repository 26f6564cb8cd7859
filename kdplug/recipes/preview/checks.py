"""Masks that an adaptor returns and nobody reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdplug.config.recipe import RecipeTraining
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss import LossSum
from kdplug.recipes.preview.match import features
from kdplug.recipes.preview.sample import BATCHES, Sample

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Loss


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """Something that the run will do, and that is hardly meant.

    ``check`` names the rule, ``field`` is the path in the recipe (empty where there is none).
    """

    check: str
    field: str
    message: str


Check = Callable[["Sample"], Iterator[PlanWarning]]
"""A rule: from what was seen of the models on the first batches to what is wrong with it."""


def dead_terms(sample: Sample) -> Iterator[PlanWarning]:
    """Each term whose weighted loss gives the student no gradient, or one that is not finite."""
    for term in sample.objective.terms:
        pull = sample.pulls.get(term.name)
        if pull is None:
            message = f"{term.name} never counts: its schedule leaves its weight at 0 from start to end"
            yield PlanWarning("dead_term", "distillation", message)
        elif not math.isfinite(pull.norm) or not math.isfinite(pull.value):
            message = f"{term.name} is {pull.value:g} on the first batches, and its gradient's norm {pull.norm:g}"
            yield PlanWarning("not_finite", "distillation", message)
        elif not pull.is_alive:
            yield PlanWarning(
                "dead_term", "distillation", f"{term.name} gives the student no gradient: {_why(sample, term.name)}"
            )


def _why(sample: Sample, name: str) -> str:
    if not sample.pulls[name].is_counted:
        return (
            f"there was nothing to count in {BATCHES} batches. Are its labels all ignored, or is its mask an additive one (0 = keep), "
            "which has to be converted: (mask == 0)?"
        )
    return (
        f"none of the student's trainable parameters takes part in it, in {BATCHES} batches. Is what it reads detached, computed "
        "under no_grad, or made of frozen layers only?"
    )


_SHARE = 0.95
_LABEL_NAMES = ("label", "target")


def unshifted_labels(sample: Sample) -> Iterator[PlanWarning]:
    """Labels of a causal language model at the position of their own token, where a loss takes them.

    The logits at a position are about the next token. A model's own loss shifts; a loss that is given labels does not.
    """
    takers = list(_takers(sample))
    if not takers or not (name := _same_inputs(sample)):
        return
    message = (
        f"the labels are the inputs {name!r} position by position, but logits are about the next token: {' and '.join(takers)} "
        "would read each label one position early. Return labels from the adaptor that are shifted by one, with -100 at the end"
    )
    yield PlanWarning("unshifted_labels", "distillation", message)


def _takers(sample: Sample) -> Iterator[str]:
    kd = sample.objective.kd_loss
    if kd is not None and kd.shifts:
        yield "probability_shift"
    if kd is not None and "labels" in kd.inputs:
        yield kd.owner
    yield from (term.owner for term, _, _ in sample.objective.matches.terms() if term.wants_labels)


def _same_inputs(sample: Sample) -> str:
    """The name of an input that the labels repeat, empty where there is none."""
    for labels in sample.of_student.labels or ():
        if labels.dim() != 2 or labels.shape[1] < 2:
            continue
        counts = labels >= 0
        for name, tensor in _integers(sample.batch):
            if tensor.shape != labels.shape or not counts.any():
                continue
            chosen = labels[counts]
            is_same = (chosen == tensor.to(labels.device)[counts]).float().mean() >= _SHARE
            if is_same and len(torch.unique(chosen)) > 2:  # a mask of ones and zeros is no text
                return name
    return ""


def _integers(batch: Any, name: str = "input") -> Iterator[tuple[str, Tensor]]:
    """The tensors of integers in a batch by name, but for those that are called labels."""
    if isinstance(batch, Tensor):
        if not batch.is_floating_point() and not batch.is_complex():
            yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            if not any(word in str(key).casefold() for word in _LABEL_NAMES):
                yield from _integers(value, str(key))
    elif isinstance(batch, (list, tuple)) and batch:
        yield from _integers(batch[0], "0")  # what follows it may be the labels


_MASKS = {"mask", "student_mask", "teacher_mask"}


def unused_masks(sample: Sample) -> Iterator[PlanWarning]:
    """An ``inputs_mask`` that no match's loss takes, a ``logits_mask`` without kd loss, logits of which padding counts.

    Without kd loss a ``logits_mask`` has nothing to do where matches have their ``inputs_mask`` and the student's own losses leave
    out by themselves what it leaves out. That a mask does nothing to logits of two axes is said by the objective itself.
    """
    given = set(sample.of_student.given) | set(sample.of_teacher.given)
    terms = [term for term, _, _ in sample.objective.matches.terms()]
    takers = [term for term in terms if _MASKS & set(term.inputs)]
    if "inputs_mask" in given and terms and not takers:
        message = f"inputs_mask is read by no term: none of {', '.join(sorted({t.owner for t in terms}))} takes a mask"
        yield PlanWarning("unused_mask", "distillation.intermediate_matches", message)
    kd = sample.objective.kd_loss
    is_missed = (bool(takers) and "inputs_mask" not in given) or _losses_need_mask(sample)
    if "logits_mask" in given and kd is None and is_missed:
        message = "logits_mask is read by no term: the kd loss is off"
        yield PlanWarning("unused_mask", "distillation.kd_loss_weight", message)
    if kd is not None and "logits_mask" not in given and _counts_padding(sample):
        message = "inputs_mask leaves positions out, but the kd loss counts them too: it reads logits_mask, which no adaptor returned"
        yield PlanWarning("padding_counts", "", message)


def _counts_padding(sample: Sample) -> bool:
    """Whether logits go position by position over inputs of which some are masked."""
    mask, logits = sample.of_student.inputs_mask, sample.of_student.logits
    if mask is None or logits is None or bool((mask != 0).all()):
        return False
    return any(len(one.shape) == 3 and one.shape[:2] == mask.shape for one in logits)


def _losses_need_mask(sample: Sample) -> bool:
    """Whether the student's own losses are a term, and are not known to leave out the logits that ``logits_mask`` leaves out."""
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
    """The gradient of the losses in each head's logits, ``None`` where they are not made of these. The graph stays."""
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
    """What belongs to a kd loss that is off, matches of weight 0, and a teacher that no term reads."""
    given, terms = sample.recipe.distillation, [term for term, _, _ in sample.objective.matches.terms()]
    if not given.kd_loss_weight:
        unused = dict.fromkeys(_KD_ONLY, "has no effect: kd_loss_weight is 0")
        if not any("temperature" in term.inputs for term in terms):
            message = "has no effect: kd_loss_weight is 0, and no match's loss takes a temperature"
            unused |= dict.fromkeys(_TEMPERATURE, message)
        for field, message in unused.items():
            if field in given.model_fields_set and getattr(given, field):
                yield PlanWarning(_CHECK, f"distillation.{field}", message)
        if not terms:
            message = "nothing is learned from the teacher: the kd loss is off, and there is no match"
            yield PlanWarning(_CHECK, "distillation", message)
    for place, match in enumerate(given.intermediate_matches):
        if not match.weight:
            yield PlanWarning(_CHECK, f"distillation.intermediate_matches.{place}", "has no effect: its weight is 0")
    for place, one in enumerate(given.layer_map):
        if not one.weight:
            path = ".".join(map(str, ("distillation", *given.path_of_map(place))))
            yield PlanWarning(_CHECK, path, "has no effect: its weight is 0")


def large_rates(training: RecipeTraining, fit: RecipeTraining | None) -> Iterator[PlanWarning]:
    """Learning rates, of the student and of a teacher that is fitted first, at which a first step destroys the weights."""
    for field, one in (("training.lr", training), ("task", fit)):
        if one is not None and one.lr > _LARGE_RATE:
            message = (
                f"the learning rate is {one.lr:g}: {one.optimizer} moves a weight by about that much for a gradient of 1, so the loss will "
                "hardly stay finite"
            )
            yield PlanWarning("large_learning_rate", field, message)


_TOLERANCE = 2e-2
"""What rows of bfloat16 may miss 1 by."""


def doubled_softmax(sample: Sample) -> Iterator[PlanWarning]:
    """Probabilities given to a loss that takes scores, scores given to one that takes probabilities, logits that are
    probabilities.

    A loss that has a setting ``inputs`` says with it which of the two it takes: ``scores`` or ``probs``.
    """
    matches = zip(sample.objective.matches.terms(), _settings(sample), strict=True)
    for (term, path, _), takes in matches:
        field = ".".join(map(str, ("distillation", *path, "loss")))
        for side in ("student", "teacher"):
            tensors = [tensor for of, tensor in features(term, sample) if of == side]
            if takes == "scores" and any(map(is_probability, tensors)):
                message = (
                    f"{term.name}: the {side}'s rows are probabilities (they sum to 1), and {term.owner} takes scores and applies "
                    "a softmax to them again. Write inputs: probs"
                )
                yield PlanWarning("doubled_softmax", field, message)
            elif takes == "probs" and not all(map(is_probability, tensors)):
                message = (
                    f"{term.name}: {term.owner} takes probabilities, and the {side}'s rows are none (they do not sum to 1). Write "
                    "inputs: scores"
                )
                yield PlanWarning("missing_softmax", field, message)
    if sample.objective.kd_loss is None:
        return
    for side, outputs in (("student", sample.of_student), ("teacher", sample.of_teacher)):
        if any(isinstance(logits, Tensor) and is_probability(logits) for logits in outputs.logits or ()):
            message = (
                f"the {side}'s logits are probabilities (they sum to 1); the kd loss applies a softmax to them again"
            )
            yield PlanWarning("doubled_softmax", "distillation.kd_loss_type", message)


def is_probability(tensor: Tensor) -> bool:
    """Whether each row along the last axis is at least 0 and sums to 1; a row of zeros, as padding leaves, is let pass."""
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-1] < 2 or not tensor.numel():
        return False
    rows = tensor.detach().float()
    sums = rows.sum(dim=-1)
    is_one, is_empty = (sums - 1).abs() < _TOLERANCE, sums == 0
    return bool((rows >= 0).all() and is_one.any() and torch.logical_or(is_one, is_empty).all())


def _settings(sample: Sample) -> list[object]:
    """What each match's loss takes, in the order of the objective's matches."""
    return [match.loss.settings.get("inputs") for match in sample.config.intermediate_matches if match.weight]


def unbalanced_temperature(sample: Sample) -> Iterator[PlanWarning]:
    """A kd loss without the factor T² beside a loss on labels."""
    config = sample.config
    if not (config.kd_loss_weight and config.hard_label_weight) or config.temperature <= 1:
        return
    if config.kd_loss_type.settings.get("t2") is False:
        squared = config.temperature**2
        message = (
            f"{config.kd_loss_type.name} leaves out the factor T², so at temperature {config.temperature:g} the gradient of the kd "
            f"loss is about 1/{squared:g} of what it is at 1, and labels outweigh the teacher by as much. Write t2: true, or "
            f"raise kd_loss_weight to about {squared * config.kd_loss_weight:g}"
        )
        yield PlanWarning("temperature", "distillation.kd_loss_type", message)
