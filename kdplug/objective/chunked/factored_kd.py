"""The KD loss of factored logits, computed in chunks of items."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kdplug.config.error_path import prefixed
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss import LossSum
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import ConfigError, OutputsError, SignatureError
from kdplug.objective.batch import Batch
from kdplug.objective.chunked.chunk_source import (
    ChunkSetting,
    DenseChunks,
    FactoredChunks,
    SparseChunks,
    StudentChunks,
    TeacherChunks,
    chunk_length,
    chunks,
    free_memory,
)
from kdplug.objective.chunked.chunked_loss import ChunkedLoss
from kdplug.objective.logit_loss import LogitLoss
from kdplug.objective.numerics import frozen, full, without_autocast
from kdplug.objective.selection import HeadLogits, MultiTeacherLogits
from kdplug.objective.sequences import Sequences
from kdplug.objective.teacher import Combiner
from kdplug.objective.term import term_value

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


def compared(
    pair: HeadLogits, loss: LogitLoss, batch: Batch, chunk: ChunkSetting, parameters: Sequence[Tensor]
) -> LossSum | Any:
    """Compute the loss of a pair if at least one side is not a tensor.

    A loss with a closed form uses it. A loss that returns ``LossSum`` or declares its reduction is computed in chunks.
    Any other loss gets all logits at once.

    Raises: ``ConfigError`` for a temperature scheduler that needs all items; ``OutputsError`` if the logits do not fit
    into memory; ``SignatureError`` for an invalid return value of the loss.
    """
    student, teacher = pair.student, _frozen(pair.teacher)
    assert not isinstance(student, SparseLogits)
    scheduled = loss.temperature.scheduler is not None
    if isinstance(student, FactoredLogits) or isinstance(teacher, FactoredLogits):
        parts = _parts(pair, chunk_length_of(student, teacher, batch, chunk, pair.sequences))
        slices = tuple(items for items, _ in parts)
        if chunk == "whole":
            _check_room(loss, pair)
        if loss.rows is not None and not scheduled:
            return _closed(pair, _sides(student, teacher, batch, slices), loss)
        if len(slices) > 1:
            if loss.reduction is None or loss.reads_whole_batch:
                _check_whole(loss, pair, chunk)
            else:
                _check_schedule(loss, slices)
                chunked = _sides(student, teacher, batch, slices)
                return _in_chunks(pair, chunked, loss, batch, parameters=parameters, places=[one for _, one in parts])
    whole = multiplied_out(student), teacher if isinstance(teacher, SparseLogits) else multiplied_out(teacher)
    with without_autocast(student.device):
        return loss(*whole, pair.labels, batch, sequences=pair.sequences, ids=pair.ids)


def _parts(pair: HeadLogits, length: int) -> list[tuple[slice, Sequences | None]]:
    """Return the chunks of about ``length`` items, with the places of their items if they are whole sequences."""
    if pair.sequences is not None:
        return list(pair.sequences.parts(length))
    return [(items, None) for items in chunks(pair.student.shape[:-1].numel(), length)]


def combined(
    group: MultiTeacherLogits, combiner: Combiner, loss: LogitLoss, batch: Batch, chunk: ChunkSetting
) -> HeadLogits:
    """Combine several teachers' logits and pair them with the student's.

    A combiner needs the logits of all items as tensors.

    A combiner that requests a scheduled temperature gets the temperature of ``loss``, which the pair then stores.

    Raises: ``OutputsError`` for a sparse teacher, and for logits that are too large to multiply out.
    """
    student, teachers, labels, ids = group
    assert not isinstance(student, SparseLogits)
    dense = [student, *teachers]
    for one in dense:
        if isinstance(one, SparseLogits):
            raise OutputsError(
                f"{combiner.owner} needs the full logits of each teacher, but one returned SparseLogits. Return dense logits",
                field="teacher_combiner",
            )
    items = student.shape[:-1].numel()
    length = min(chunk_length_of(student, one, batch, chunk) for one in teachers)
    if length < items and not all(isinstance(one, Tensor) for one in dense):
        raise OutputsError(
            f"{combiner.owner} reads the logits of all {items} items at once, but logits are computed from "
            f"FactoredLogits {length} items at a time. Set logit_chunk: whole, which holds all logits in memory, or use one teacher",
            field="teacher_combiner",
        )
    whole = [one if isinstance(one, Tensor) else one.dense() for one in dense if not isinstance(one, SparseLogits)]
    temperature = _scheduled(whole, labels, combiner, loss, batch)
    return HeadLogits(whole[0], combiner(whole[1:], whole[0], labels, batch, temperature), labels, temperature, ids=ids)


def _scheduled(
    sides: Sequence[Tensor], labels: Tensor | None, combiner: Combiner, loss: LogitLoss, batch: Batch
) -> Tensor | float | None:
    """Return the scheduled temperature of combined logits that depend on it, otherwise ``None``.

    A scheduler that reads the teacher gets the logits combined at the configured temperature.

    Raises: ``ConfigError`` for a temperature with gradient, which the combiner would drop for the teacher's side.
    """
    if loss.temperature.scheduler is None or not combiner.wants_temperature:
        return None
    student, *teachers = sides
    reads_teacher = "teacher_logits" in loss.temperature.inputs
    teacher = combiner(teachers, student, labels, batch) if reads_teacher else full(frozen(teachers[0]))
    with without_autocast(student.device):
        found = loss.temperature.of(full(student), loss.shifted(teacher, labels), batch)
    if isinstance(found, Tensor) and found.requires_grad:
        raise ConfigError(
            f"{loss.temperature.owner} computes a temperature with gradient, but {combiner.owner} combines the teachers' "
            "logits at this temperature without gradient. Use a teacher_combiner that does not request temperature, such as "
            "mean_logits, or a scheduler without parameters",
            field="temperature_scheduler",
        )
    return found


def multiplied_out(logits: Tensor | FactoredLogits) -> Tensor:
    """Return the logits as a tensor in float32 or wider."""
    return full(logits if isinstance(logits, Tensor) else logits.dense())


def chunk_length_of(
    student: Logits, teacher: Logits, batch: Batch, chunk: ChunkSetting, sequences: Sequences | None = None
) -> int:
    """Return the number of items of this pair per chunk; of sequences, all places count."""
    sizes = [_precision(one, batch).itemsize for one in (student, teacher) if not isinstance(one, SparseLogits)]
    *items, classes = student.shape
    classes = max(classes, teacher.shape[-1])
    number = torch.Size(items).numel() if sequences is None else sequences.mask.numel()
    return chunk_length(chunk, number, classes, max(sizes), student.device)


def _closed(pair: HeadLogits, chunked: ChunkedLoss, loss: LogitLoss) -> LossSum:
    labels = None if pair.labels is None else pair.labels.reshape(_flat(pair.labels))

    def rows(student: Tensor, teacher: Tensor | SparseLogits, at: slice) -> Tensor:
        return loss.write_gradient(student, teacher, None if labels is None else labels[at])

    with without_autocast(chunked.device):
        return LossSum(chunked.closed(rows), chunked.items)


def _in_chunks(
    pair: HeadLogits,
    chunked: ChunkedLoss,
    loss: LogitLoss,
    batch: Batch,
    *,
    parameters: Sequence[Tensor],
    places: Sequence[Sequences | None],
) -> LossSum | Tensor:
    labels = None if pair.labels is None else pair.labels.reshape(_flat(pair.labels))
    ids = None if pair.ids is None else pair.ids.reshape(-1)

    def of_chunk(student: Tensor, teacher: Tensor | SparseLogits, number: int) -> LossSum:
        at, sequences = chunked.chunks[number], places[number]
        own, of_items = None if labels is None else labels[at], None if ids is None else ids[at]
        found = loss(student, teacher, own, batch, sequences=sequences, ids=of_items)
        with prefixed("loss"):
            term_value(found, 1.0, loss.owner)
            if isinstance(found, LossSum):
                if loss.reduction != "LossSum":
                    raise SignatureError(
                        f"{loss.owner} declares {loss.reduction}_over_items, but returned a LossSum. Remove the "
                        "declaration, and annotate the return type as LossSum"
                    )
                return found
            if loss.reduction == "LossSum":
                raise SignatureError(
                    f"{loss.owner} is annotated to return a LossSum, but returned a scalar, which cannot be added up over "
                    f"chunks of {_longest(chunked.chunks)} of the {chunked.items} items. Return a LossSum, or set "
                    "logit_chunk: whole, which computes all logits at once"
                )
        count = len(student) if sequences is None else len(sequences.mask)
        return LossSum(found * count, count) if loss.reduction == "mean" else LossSum(found, 1)

    with without_autocast(chunked.device):
        summed = chunked.differentiated(of_chunk, parameters)
    if loss.reduction == "LossSum":
        return summed
    return summed.value if loss.reduction == "mean" else summed.total  # a scalar, like the loss's own result


class _Price(NamedTuple):
    """Memory of a loss on all logits at once: ``needed`` bytes, of which ``least`` are those of multiplied-out logits."""

    needed: int
    least: int
    text: str

    @classmethod
    def of(cls, pair: HeadLogits) -> _Price:
        items = pair.student.shape[:-1].numel() if pair.sequences is None else pair.sequences.mask.numel()
        sides = {"student": pair.student, "teacher": pair.teacher}
        known = {side: one for side, one in sides.items() if not isinstance(one, SparseLogits)}
        dtypes = (factor.dtype for one in known.values() for factor in _tensors(one))
        width = reduce(torch.promote_types, dtypes, torch.float32).itemsize
        each = {side: items * one.shape[-1] * width for side, one in known.items()}
        factored = [side for side, one in known.items() if isinstance(one, FactoredLogits)]
        needed = sum(each.values()) + 2 * each["student"]
        tensors = " + ".join([*known, "softmax", "gradient"])
        text = (
            f"the logits of all {items:,} items at once, about {needed / 2**30:.3g} GiB ({tensors}: {items:,} × "
            f"{pair.student.shape[-1]:,} × {width} bytes each)"
        )
        return cls(needed, sum(each[side] for side in factored), text)


def _tensors(logits: Tensor | FactoredLogits) -> tuple[Tensor, ...]:
    return (logits,) if isinstance(logits, Tensor) else logits.tensors


_REMEDY = (
    "If the loss is a mean or a sum over items, annotate its return type as LossSum and return one, or declare "
    "@kdplug.mean_over_items or @kdplug.sum_over_items"
)


def _check_whole(loss: LogitLoss, pair: HeadLogits, chunk: ChunkSetting) -> None:
    """Warn once about the cost of a loss without a declared reduction, and record it.

    Raises: ``OutputsError`` if ``logit_chunk`` is a number, or all logits exceed the free memory.
    """
    price = _Price.of(pair)
    why, remedy = "declares no reduction", _REMEDY
    if loss.reads_whole_batch:
        why, remedy = "reads extras or parameters, which cannot be divided into chunks", "Use smaller batches"
    if chunk != "auto":
        remedy = "Set logit_chunk: auto" if loss.reads_whole_batch else f"{remedy}. Otherwise set logit_chunk: auto"
        raise OutputsError(
            f"is {chunk}, but {loss.owner} {why}, so it needs {price.text}. {remedy}", field="logit_chunk"
        )
    if price.needed <= loss.largest:
        return
    free = free_memory(pair.student.device)
    if free is not None and price.needed > free:
        raise OutputsError(
            f"{loss.owner} {why}, so it needs {price.text}, but only {free / 2**30:.3g} GiB are free. {remedy}",
            field="loss",
        )
    first, loss.largest = not loss.largest, price.needed
    if first:
        warnings.warn(f"{loss.owner} {why}, so it is computed on {price.text}. {remedy}", stacklevel=2)


def _check_room(loss: LogitLoss, pair: HeadLogits) -> None:
    """Record the cost of ``logit_chunk: whole``.

    Raises: ``OutputsError`` if the logits alone, without softmax and gradient, exceed the free memory.
    """
    price = _Price.of(pair)
    if price.needed <= loss.largest:
        return
    free = free_memory(pair.student.device)
    if free is not None and price.least > free:
        remedy = "Set logit_chunk: auto" if loss.reduction is not None else f"{_REMEDY}, and set logit_chunk: auto"
        if loss.reads_whole_batch:
            remedy = "Use smaller batches"
        raise OutputsError(
            f"is whole, so {loss.owner} needs {price.text}, but only {free / 2**30:.3g} GiB are free. {remedy}",
            field="logit_chunk",
        )
    loss.largest = price.needed


def _sides(student: Tensor | FactoredLogits, teacher: Logits, batch: Batch, slices: tuple[slice, ...]) -> ChunkedLoss:
    sides = [one for one in (student, teacher) if not isinstance(one, SparseLogits)]
    working = reduce(torch.promote_types, (_precision(one, batch) for one in sides), torch.float32)
    learns = torch.is_grad_enabled()
    length = _longest(slices)
    ours: StudentChunks = (
        DenseChunks(student, working, learns=learns)
        if isinstance(student, Tensor)
        else FactoredChunks(student, length, _precision(student, batch), working, learns=learns)
    )
    chunked_teacher = _teacher_side(teacher, batch, length, working)
    return ChunkedLoss(ours, chunked_teacher, slices, student.shape[-1], student.device, working)


def _longest(slices: Iterable[slice]) -> int:
    found: int = max(one.stop - one.start for one in slices)
    return found


def _teacher_side(teacher: Logits, batch: Batch, length: int, working: torch.dtype) -> TeacherChunks:
    if isinstance(teacher, SparseLogits):
        return SparseChunks(teacher)
    if isinstance(teacher, Tensor):
        return DenseChunks(teacher, working, learns=False)
    return FactoredChunks(teacher, length, _precision(teacher, batch), working, learns=False)


def _precision(logits: Tensor | FactoredLogits, batch: Batch) -> torch.dtype:
    """Return the precision of the matrix products, as in a linear layer: autocast does not change float64."""
    if isinstance(logits, Tensor):
        return logits.dtype
    dtype = reduce(torch.promote_types, (factor.dtype for factor in logits.tensors))
    device = logits.device.type
    return torch.get_autocast_dtype(device) if batch.autocast(logits) and dtype is not torch.float64 else dtype


def _frozen(teacher: Logits) -> Logits:
    if isinstance(teacher, Tensor):
        return frozen(teacher)
    if isinstance(teacher, FactoredLogits):
        bias = None if teacher.bias is None else frozen(teacher.bias)
        return replace(teacher, hidden=frozen(teacher.hidden), weight=frozen(teacher.weight), bias=bias)
    return teacher


def _flat(labels: Tensor) -> tuple[int, ...]:
    """The shape of the labels of all items in one axis: class indices, or probabilities with the classes last."""
    return (-1, labels.shape[-1]) if labels.is_floating_point() else (-1,)


def _check_schedule(loss: LogitLoss, slices: Sequence[slice]) -> None:
    if loss.temperature.scheduler is not None:
        raise ConfigError(
            f"{loss.temperature.owner} reads the logits of all {slices[-1].stop} items at once, but logits are computed "
            f"from FactoredLogits {_longest(slices)} items at a time. Set temperature_scheduler: none, or logit_chunk: whole, which "
            "holds all logits in memory",
            field="temperature_scheduler",
        )
