"""The distillation loss on logits."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import KdplugError, OutputsError
from kdplug.host import registry
from kdplug.objective.bare import is_bare
from kdplug.objective.batch import Batch
from kdplug.objective.combiner import Combiner
from kdplug.objective.compact import combined, compared
from kdplug.objective.field import below
from kdplug.objective.gather import gathered
from kdplug.objective.gradient import connected_zero, target
from kdplug.objective.pair_loss import PairLoss
from kdplug.objective.precision import full
from kdplug.objective.report import TermValue, over_heads
from kdplug.objective.schedule import Schedule, build_schedule
from kdplug.objective.selection import Pair, check_pair, head_masks, is_ignored, select, select_several
from kdplug.objective.teacher import Names, side
from kdplug.objective.temperature import Temperature
from kdplug.objective.term import term_value
from kdplug.objective.vocabulary import Vocabulary

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.contracts.outputs import Logits


_SIDES = ("student_logits", "teacher_logits")
_STEADY = ((), ("temperature",))


class KdTerm(nn.Module):
    """The loss between student and teacher logits, summed over heads. The logits of several teachers are combined first."""

    name = "kd_loss"
    mask_key = "logits_mask"

    def __init__(self, config: DistillationConfig, teachers: Names) -> None:
        super().__init__()
        try:
            component = registry.losses.build(config.kd_loss_type, site="kd")
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__
        self.schedule: Schedule = build_schedule(
            config.kd_loss_weight, config.kd_loss_weight_scheduler, "kd_loss_weight_scheduler"
        )
        self.loss: Any = component.target  # a module where the entry is a class: trained and saved with this one
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.temperature = Temperature(config.temperature, config.temperature_scheduler)
        self.shifts = config.probability_shift
        with below("kd_loss_type"):
            self.pair_loss = PairLoss(component, self.temperature, shifts=self.shifts)
        self.vocabulary = Vocabulary(config.padded_vocabulary, is_across=self.pair_loss.is_across)
        self.chunk = config.logit_chunk
        self.teachers = teachers
        self.sides = tuple(side(teachers, place) for place in range(len(teachers)))
        self.combiner = Combiner(config, teachers) if len(teachers) > 1 else None
        combines_by_label = self.combiner is not None and self.combiner.wants_labels
        self.wants_labels = self.shifts or "labels" in self.inputs or combines_by_label
        self.steady = self.temperature.base
        is_steady = self.temperature.scheduler is None and self.inputs[:2] == _SIDES and self.inputs[2:] in _STEADY
        self.takes_bare = self.combiner is None and not self.wants_labels and is_steady
        self._has_warned = False

    @property
    def weight(self) -> float:
        return self.schedule.base

    def value(self, batch: Batch, weight: float) -> TermValue:
        """The sum over heads of the loss.

        Raises: ``OutputsError`` for logits, labels or masks that are missing or differ in number; ``ShapeError``.
        """
        if self.takes_bare and (pair := self._bare(batch)) is not None:
            try:
                result = self.loss(*pair) if len(self.inputs) == len(pair) else self.loss(*pair, self.steady)
                return term_value(result, weight, self.owner)
            except KdplugError as error:
                raise error.at("kd_loss_type") from error.__cause__
        pairs = self._pairs(batch) if self.combiner is None else self._combined(batch, self.combiner)
        if len(pairs) == 1:
            return self._compared(pairs[0], batch, weight)
        return over_heads([self._compared(pair, batch, weight) for pair in pairs])

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        return [tensor for head in batch.student.logits or () for tensor in _tensors(head)]

    def skipped(self, batch: Batch) -> Tensor:
        logits, _ = self._student(batch)
        return connected_zero([*(tensor for head in logits for tensor in _tensors(head)), *self.parameters()])

    def _bare(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The logits of the commonest batch, at which nothing is left to be looked at: one head on each side, both bare and of
        one shape, no mask.
        """
        student, teacher = batch.student, batch.teacher
        if student.logits_mask is not None or teacher.logits_mask is not None:
            return None
        if student.logits is None or teacher.logits is None or len(student.logits) != 1 or len(teacher.logits) != 1:
            return None
        own, theirs = student.logits[0], teacher.logits[0]
        if not isinstance(own, Tensor) or not isinstance(theirs, Tensor):
            return None
        shape = own.shape
        if shape != theirs.shape or not shape or shape[-1] < 2 or not own.numel():
            return None
        return (own, theirs) if is_bare(own, theirs) else None

    def _pairs(self, batch: Batch) -> list[Pair]:
        """What counts of each head."""
        student, labels = self._student(batch)
        pairs = list(map(Pair, student, self._teacher(batch, 0, len(student)), labels))
        if batch.student.logits_mask is not None or batch.teacher.logits_mask is not None:
            pairs = self._selected(pairs, batch)
        return pairs

    def _combined(self, batch: Batch, combiner: Combiner) -> list[Pair]:
        """What counts of each head, each teacher by its own mask, with the teachers' logits combined."""
        student, labels = self._student(batch)
        heads = len(student)
        places = range(len(batch.teachers))
        teachers = zip(*(self._teacher(batch, place, heads) for place in places), strict=True)
        masks = zip(*(head_masks(one, heads, self.sides[p]) for p, one in enumerate(batch.teachers)), strict=True)
        mine = head_masks(batch.student, heads, "student")
        found = []
        for own, theirs, label, mask, their_masks in zip(student, teachers, labels, mine, masks, strict=True):
            effective = [self._effective(one, logits) for one, logits in zip(their_masks, theirs, strict=True)]
            chosen = select_several(
                own,
                theirs,
                label,
                student_mask=self._effective(mask, own),
                teacher_masks=effective,
                names=self.teachers,
            )
            found.append(
                combined(chosen, combiner, self.pair_loss, batch, self.chunk)
                if chosen.student.shape.numel()
                else chosen.first
            )
        return found

    def _student(self, batch: Batch) -> tuple[tuple[Logits, ...], tuple[Tensor | None, ...]]:
        logits = self._logits(batch.student, "student")
        if any(isinstance(head, SparseLogits) for head in logits):
            raise OutputsError("are SparseLogits: only a teacher may be known at a few classes", field="student.logits")
        logits = tuple(map(gathered, logits))
        return logits, self._labels(batch.student, len(logits)) if self.wants_labels else (None,) * len(logits)

    def _teacher(self, batch: Batch, place: int, heads: int) -> tuple[Logits, ...]:
        name = self.sides[place]
        logits = self._logits(batch.teachers[place], name)
        if heads != len(logits):
            raise OutputsError(
                f"the student returned {heads} logits and the {name} {len(logits)}: heads are compared one by one",
                field="kd_loss_type",
            )
        return tuple(map(gathered, logits))

    def _logits(self, outputs: Outputs, side: str) -> tuple[Logits, ...]:
        if outputs.logits is not None:
            return outputs.logits
        given = ", ".join(outputs.given) or "nothing"
        raise OutputsError(
            f"is {self.weight:g}, but the {side} returned no logits, only {given}. Return them from its adaptor, "
            "or set kd_loss_weight: 0 to train without it",
            field="kd_loss_weight",
        )

    def _labels(self, student: Outputs, heads: int) -> tuple[Tensor | None, ...]:
        labels = student.labels
        if labels is None:
            if self.shifts:
                raise OutputsError("needs labels, and the student returned none", field="probability_shift")
            return (None,) * heads
        if len(labels) != heads:
            raise OutputsError(
                f"the student returned {len(labels)} labels for {heads} logits: each head needs its own",
                field="student.labels",
            )
        return labels

    def _selected(self, pairs: list[Pair], batch: Batch) -> list[Pair]:
        student = head_masks(batch.student, len(pairs), "student")
        teacher = head_masks(batch.teacher, len(pairs), "teacher")
        return [
            select(pair, self._effective(mine, pair.student), self._effective(theirs, pair.teacher))
            for pair, mine, theirs in zip(pairs, student, teacher, strict=True)
        ]

    def _effective(self, mask: Tensor | None, logits: Logits) -> Tensor | None:
        if mask is None or not is_ignored(mask, logits):
            return mask
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"logits_mask {list(mask.shape)} has no effect: the logits {list(logits.shape)} have one row per example "
                "and none per position",
                stacklevel=2,
            )
        return None

    def _compared(self, pair: Pair, batch: Batch, weight: float) -> TermValue:
        differs = pair.student.shape != pair.teacher.shape
        if differs:
            pair = self.vocabulary(pair)
        check_pair(pair, is_across=self.pair_loss.is_across)
        if differs:
            self.pair_loss.check_classes(pair)
        student, teacher, labels, _ = pair
        if not student.shape.numel():
            return TermValue(connected_zero([*_tensors(student), *self.parameters()]), 0, weight)
        self.pair_loss.check(teacher, labels, batch)
        if student.shape[-1] == 1:
            self.pair_loss.check_number(student.device, batch)
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return self._valued(compared(pair, self.pair_loss, batch, self.chunk, trained), weight)
        dense = pair._replace(student=full(student), teacher=target(teacher))
        if not batch.autocast(student):
            return self._valued(self.pair_loss.of(dense, batch), weight)
        with torch.autocast(student.device.type, enabled=False):
            return self._valued(self.pair_loss.of(dense, batch), weight)

    def _valued(self, result: Any, weight: float) -> TermValue:
        try:
            return term_value(result, weight, self.owner)
        except KdplugError as error:
            raise error.at("kd_loss_type") from error.__cause__


def _tensors(logits: Logits) -> tuple[Tensor, ...]:
    """What carries the gradient of a student's logits."""
    assert not isinstance(logits, SparseLogits)
    return (logits,) if isinstance(logits, Tensor) else logits.tensors
