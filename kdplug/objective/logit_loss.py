"""Call a loss on one pair of logits with the inputs that its signature names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor

from kdplug.config.term import TermPlace
from kdplug.contracts.loss import (
    ACROSS_VOCABULARIES,
    COARSENS,
    TAKES_NUMBERS,
    WHOLE_SEQUENCES,
    declares,
    reduction_of,
)
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import KdplugError, OutputsError, SignatureError
from kdplug.host.component import Component, check_declarations, closed_form_of
from kdplug.objective.batch import Batch
from kdplug.objective.chunked.topk_tail import expand_rows_, topk_tail_rows, topk_tail_student, topk_tail_teacher
from kdplug.objective.named_inputs import NamedInputs, named_getters
from kdplug.objective.schedule import Temperature
from kdplug.objective.selection import HeadLogits, shift
from kdplug.objective.sequences import Sequences


class LogitLoss:
    """Calls a loss with its requested inputs, for dense or sparse teacher logits.

    A loss that requests ``teacher_sparse`` gets a sparse teacher unchanged. For one that declares ``coarsens``, both
    sides are reduced to K + 1 categories (the cached classes, and all others together), as logits whose softmax at the
    temperature gives each side's exact probabilities of these categories.
    """

    def __init__(
        self,
        component: Component,
        temperature: Temperature,
        *,
        shifts: bool,
        named: NamedInputs | None = None,
        place: TermPlace | None = None,
    ) -> None:
        self.named = named
        self.place = place or TermPlace()
        self.build(component)
        self.inputs = component.inputs
        steady: dict[str, Callable[[LogitInputs], Any]] = {"temperature": attrgetter("loss.temperature.base")}
        declared = component.entry.load()
        self.takes_sequences = declares(declared, WHOLE_SEQUENCES)
        of_kind = _OF_SEQUENCES if self.takes_sequences else {}
        getters = {**_GETTERS, **of_kind, **(steady if temperature.scheduler is None else {})}
        self.getters = tuple(getters[name] for name in self.inputs)
        self.owner = component.entry.qualified
        self.temperature = temperature
        if "temperature" in self.inputs and temperature.scheduler is None:
            temperature.warn_if_high(temperature.base)
        self.shifts = shifts
        self.takes_sparse = "teacher_sparse" in self.inputs
        self.draws = "draw_seed" in self.inputs
        self.takes_dense = "teacher_logits" in self.inputs or not self.takes_sparse
        self.reads_whole_batch = named is not None and bool(named.inputs)
        """True if the loss reads tensors that cannot be divided among chunks of items."""
        check_declarations(component.entry)
        self.is_across = declares(declared, ACROSS_VOCABULARIES)
        self.coarsens = declares(declared, COARSENS)
        self.takes_numbers = declares(declared, TAKES_NUMBERS)
        self.largest = 0  # bytes for all factored logits at once, in the batches so far
        self.reduction = reduction_of(declared)

    def build(self, component: Component) -> None:
        """Set the loss to call. One that takes ``num_examples`` is built later, when that is known."""
        self.target: Any = component.target
        self.widths = component.widths
        self.is_built = not component.widths
        self.rows = closed_form_of(component) if self.is_built else None

    def check_classes(self, pair: HeadLogits) -> None:
        """Raise ``OutputsError`` if classes must match on both sides but differ in number."""
        if pair.student.shape[-1] == pair.teacher.shape[-1]:
            return
        sizes = f"the student has {pair.student.shape[-1]} classes and the teacher {pair.teacher.shape[-1]}"
        if isinstance(pair.teacher, SparseLogits):
            raise OutputsError(
                f"are SparseLogits, whose ids are class indices, but {sizes}. Return dense logits",
                field="teacher.logits",
            )
        if self.shifts and pair.labels is not None:
            raise OutputsError(
                f"needs the teacher's logit at the student's label, but {sizes}. Set probability_shift to false",
                field="probability_shift",
            )

    def check(self, teacher: Tensor | SparseLogits | Any, labels: Tensor | None) -> None:
        """Raise ``OutputsError`` if this loss cannot be computed from the given teacher logits."""
        if not isinstance(teacher, SparseLogits):
            if not self.takes_dense:
                raise OutputsError(
                    f"{self.owner} requests teacher_sparse, but the teacher's logits are dense. Return or store "
                    "SparseLogits, or use a loss on dense logits",
                    field="teacher.logits",
                )
            return
        self._check_sparse(teacher)
        if self.shifts and labels is not None:
            raise OutputsError(
                "needs the teacher's logit at each label, which SparseLogits do not always contain. Set probability_shift to "
                "false, or return or store dense logits",
                field="probability_shift",
            )
        if not self.takes_sparse:
            self._check_coarse(teacher)

    def _check_sparse(self, teacher: SparseLogits) -> None:
        if self.temperature.scheduler is not None:
            raise OutputsError(
                "may compute other temperatures than those of the teacher's SparseLogits, which are fixed. Set "
                "temperature_scheduler: none, or return or store dense logits",
                field="temperature_scheduler",
            )
        if not teacher.is_known_at(self.temperature.base):
            known = [f"{one:g}" for one in teacher.temperatures]
            raise OutputsError(
                f"is {self.temperature.base:g}, but the teacher's SparseLogits were taken at {' and '.join(known)}: "
                f"a tail cannot be converted to another temperature. Set temperature: {' or '.join(known)}, or rebuild the "
                "SparseLogits with every temperature that a term uses",
                field="temperature",
            )

    def _check_coarse(self, teacher: SparseLogits) -> None:
        if teacher.tail is None or teacher.log_probs is None:
            raise OutputsError(
                f"{self.owner} needs the full distribution, but the teacher's SparseLogits have no tail. Add a tail, or "
                "use a loss that requests teacher_sparse",
                field="teacher.logits",
            )
        if "labels" in self.inputs:
            raise OutputsError(
                f"{self.owner} requests labels, but with SparseLogits the label's class may be known only as part of "
                "the tail. Use a loss without labels, or return dense logits",
                field="teacher.logits",
            )
        if not self.coarsens:
            raise OutputsError(
                f"{self.owner} does not declare coarsens. SparseLogits with a tail give it {teacher.ids.shape[-1]} "
                "classes, different for each item, plus one for all others, which changes a loss that compares "
                "ranks, standard deviations or items. Use a loss that declares coarsens, such as kl, or return dense "
                "logits. If your loss stays the same when classes are merged, declare coarsens: @kdplug.coarsens above the function, "
                "coarsens = True in the class",
                field="teacher.logits",
            )
        ids = teacher.ids
        if ids.device.type == "cpu" and ids.shape[-1] > 1:
            ordered = ids.sort(dim=-1).values
            if (ordered[..., 1:] == ordered[..., :-1]).any():
                raise OutputsError(
                    "hold a class twice for one item, which a tail does not allow. Return each class once",
                    field="teacher.logits",
                )

    def check_number(self, side: str) -> None:
        """Check a pair in which ``side`` has a single class.

        Raises: ``OutputsError`` unless the loss declares ``takes_numbers`` and no temperature scheduler reads the logits.
        """
        if not self.takes_numbers:
            raise OutputsError(
                f"have one class, but {self.owner} does not declare takes_numbers. The softmax of one class is always "
                "1, so a loss on probabilities has no gradient. Use a loss that compares numbers, such as mse. If "
                "your loss does, decorate the function with @kdplug.takes_numbers, or set takes_numbers = True in the class",
                field=f"{side}.logits",
            )
        if {"student_logits", "teacher_logits"} & set(self.temperature.inputs):
            raise OutputsError(
                f"have one class, and {self.temperature.owner} computes the temperature from the distribution over classes. "
                "Set temperature_scheduler: none",
                field=f"{side}.logits",
            )

    def of(self, pair: HeadLogits, batch: Batch) -> Any:
        """Call the loss on a pair of tensors, at the temperature of the pair if it has one."""
        assert isinstance(pair.student, Tensor)
        assert isinstance(pair.teacher, Tensor)
        return self(
            pair.student,
            pair.teacher,
            pair.labels,
            batch,
            temperature=pair.temperature,
            sequences=pair.sequences,
            ids=pair.ids,
        )

    def shifted(self, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return the teacher's logits, after ``probability_shift`` if it is enabled."""
        return shift(teacher, labels) if self.shifts and labels is not None else teacher

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | SparseLogits,
        labels: Tensor | None,
        batch: Batch,
        *,
        temperature: Tensor | float | None = None,
        sequences: Sequences | None = None,
        ids: Tensor | None = None,
    ) -> Any:
        """Call the loss on logits in float32 or wider, outside autocast.

        ``temperature`` replaces the scheduled one. A loss that declares ``whole_sequences`` needs ``sequences``, the
        places of the items. ``ids`` are the examples' ids, one for each item.

        Raises: the errors of the loss, with the path of its key.
        """
        sparse: SparseLogits | None = None
        dense: Tensor | None = None
        if isinstance(teacher, Tensor):
            dense = self.shifted(teacher, labels)
        elif self.takes_sparse:
            sparse = teacher
        else:
            student, dense = topk_tail_student(student, teacher), topk_tail_teacher(teacher)
        draw_seed = batch.draws.next() if self.draws else 0
        compared = LogitInputs(self, student, dense, sparse, labels, batch, draw_seed, temperature, sequences, ids)
        values = [get(compared) for get in self.getters]
        try:
            return self.target(*values)
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
        except Exception as error:
            self.place.note(error, self.owner, lacks_labels=labels is None and "labels" in self.inputs)
            raise

    def write_gradient(self, student: Tensor, teacher: Tensor | SparseLogits, labels: Tensor | None) -> Tensor:
        """Run the closed form on rows ``[n, classes]``: return values ``[n]`` and overwrite ``student`` with the gradient.

        Raises: the errors of the closed form, with the path of the loss; ``SignatureError`` for values that are not
        ``[n]``.
        """
        assert self.rows is not None
        temperature = self.temperature.base
        if isinstance(teacher, Tensor):
            teacher = self.shifted(teacher, labels)
        try:
            if isinstance(teacher, Tensor) or self.takes_sparse:
                return self._checked(self.rows(student, teacher, temperature), student)
            coarse, parts = topk_tail_rows(student, teacher.ids, temperature)
            values = self._checked(self.rows(coarse, topk_tail_teacher(teacher).to(coarse.dtype), temperature), student)
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
        except Exception as error:
            self.place.note(error, self.owner)
            raise
        expand_rows_(student, parts, coarse, teacher.ids)
        return values

    def _checked(self, values: Any, student: Tensor) -> Tensor:
        if isinstance(values, Tensor) and values.shape == student.shape[:-1]:
            return values
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise SignatureError(
            f"the closed form of {self.owner} must return one value for each of {student.shape[0]} rows, got {found}"
        )


class LogitInputs(NamedTuple):
    """Source of a loss's inputs: the selected items of one head."""

    loss: LogitLoss
    student: Tensor
    teacher: Tensor | None
    sparse: SparseLogits | None
    labels: Tensor | None
    batch: Batch
    draw_seed: int = 0
    temperature: Tensor | float | None = None
    sequences: Sequences | None = None
    ids: Tensor | None = None


def _temperature(compared: LogitInputs) -> float | Tensor:
    if compared.temperature is not None:
        return compared.temperature
    temperature = compared.loss.temperature
    if compared.teacher is None:
        return temperature.base
    return temperature.of(compared.student, compared.teacher, compared.batch)


def _no_mask(_: LogitInputs) -> None:
    """Return ``None``: masked items have already been removed."""


_GETTERS: Mapping[str, Callable[[LogitInputs], Any]] = {
    "student_logits": attrgetter("student"),
    "teacher_logits": attrgetter("teacher"),
    "teacher_sparse": attrgetter("sparse"),
    "temperature": _temperature,
    "mask": _no_mask,
    "labels": attrgetter("labels"),
    "example_ids": attrgetter("ids"),
    "progress": attrgetter("batch.progress"),
    "step": attrgetter("batch.step"),
    "total_steps": attrgetter("batch.total_steps"),
    "epoch": attrgetter("batch.epoch"),
    "draw_seed": attrgetter("draw_seed"),
    **named_getters("loss"),
}
"""The inputs available to the kd loss. Only requested inputs are computed."""


def _sequences(compared: LogitInputs) -> Sequences:
    assert compared.sequences is not None
    return compared.sequences


def _student_in_sequences(compared: LogitInputs) -> Tensor:
    return _sequences(compared).padded(compared.student, 0.0)


def _teacher_in_sequences(compared: LogitInputs) -> Tensor | None:
    return None if compared.teacher is None else _sequences(compared).padded(compared.teacher, 0.0)


def _sparse_in_sequences(compared: LogitInputs) -> SparseLogits | None:
    return None if compared.sparse is None else _sequences(compared).padded_sparse(compared.sparse)


def _labels_in_sequences(compared: LogitInputs) -> Tensor | None:
    return None if compared.labels is None else _sequences(compared).padded_labels(compared.labels)


def _temperature_in_sequences(compared: LogitInputs) -> float | Tensor:
    """Return the temperature, scheduled on the selected items; other places hold the base temperature."""
    found = _temperature(compared)
    if not isinstance(found, Tensor) or not found.dim():
        return found
    return _sequences(compared).padded(found, compared.loss.temperature.base)


_OF_SEQUENCES: Mapping[str, Callable[[LogitInputs], Any]] = {
    "student_logits": _student_in_sequences,
    "teacher_logits": _teacher_in_sequences,
    "teacher_sparse": _sparse_in_sequences,
    "temperature": _temperature_in_sequences,
    "mask": attrgetter("sequences.mask"),
    "labels": _labels_in_sequences,
    "example_ids": attrgetter("sequences.ids"),
}
"""Inputs of a loss that declares ``whole_sequences``, which replace those above."""
