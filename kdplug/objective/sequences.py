"""Whole sequences: flatten logits ``[batch, length, classes]`` to the unmasked items, and restore their positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.item import keep
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.batch import extended_hint, places_that_count

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits

NO_LABEL = -100


class Sequences(NamedTuple):
    """The places of a batch's items in their sequences.

    ``mask`` is True at places that count, and ``places`` are the flat indices of these, in order. ``ids`` are the
    examples' ids, if the loss requests them.

    Shapes: ``mask`` bool ``[batch, length]``; ``places`` int64 ``[n]``; ``ids`` int64 ``[batch]``.
    """

    mask: Tensor
    places: Tensor
    ids: Tensor | None = None

    def padded(self, items: Tensor, filling: float) -> Tensor:
        """Return items ``[n, …]`` at their places, ``[batch, length, …]``; the other places hold ``filling``."""
        shape = (*self.mask.shape, *items.shape[1:])
        if len(items) == self.mask.numel():
            return items.reshape(shape)
        blank = items.new_full((self.mask.numel(), *items.shape[1:]), filling)
        return blank.index_copy(0, self.places, items).view(shape)

    def padded_labels(self, labels: Tensor) -> Tensor:
        """Return labels ``[batch, length]``, -100 at the other places, or class probabilities, 0 there."""
        return self.padded(labels, 0.0 if labels.is_floating_point() else NO_LABEL)

    def padded_sparse(self, items: SparseLogits) -> SparseLogits:
        """Return ``SparseLogits`` with every part at its place; the other places hold 0."""
        return items.map_parts(lambda part: self.padded(part, 0))

    def parts(self, longest: int) -> Iterator[tuple[slice, Sequences]]:
        """Yield the items of consecutive sequences, with their places.

        A part has at most ``longest`` places, those that do not count included, and at least one sequence.
        """
        rows, length = self.mask.shape
        each = max(1, longest // length)
        starts = [0, *self.mask.sum(1).cumsum(0).tolist()]
        for first in range(0, rows, each):
            last = min(first + each, rows)
            items = slice(starts[first], starts[last])
            ids = None if self.ids is None else self.ids[first:last]
            yield items, Sequences(self.mask[first:last], self.places[items] - first * length, ids)


class Flat(NamedTuple):
    """The items of several sides that count, ``[n, classes]``, with their labels and places."""

    sides: tuple[Logits, ...]
    labels: Tensor | None
    sequences: Sequences


def flatten(
    sides: Sequence[Logits], masks: Sequence[Tensor | None], names: Sequence[str], labels: Tensor | None, owner: str
) -> Flat:
    """Keep the places whose mask is 1. The first side is the student's; a side without a mask has that of the others.

    Shapes: logits ``[batch, length, classes]``, masks and labels ``[batch, length]``.
    Raises: ``ShapeError`` for other shapes; ``OutputsError`` for masks that differ, or that hold a value other than 0
    and 1.
    """
    _check_shapes(sides, names, owner)
    shape = sides[0].shape[:-1]
    if labels is not None and labels.shape[:2] != shape:
        raise ShapeError(
            f"{list(labels.shape)} do not match logits {list(sides[0].shape)}: one label per position",
            field="student.labels",
        )
    mask, places = _shared(sides[0], masks, names, owner)
    if places is None:
        places = torch.arange(shape.numel(), device=sides[0].device)
        kept = tuple(map(_in_a_row, sides))
        return Flat(kept, None if labels is None else labels.flatten(0, 1), Sequences(mask, places))
    if labels is not None:
        labels = keep(labels, places, labels.dim() - 2)
    return Flat(tuple(_at(one, places) for one in sides), labels, Sequences(mask, places))


def _check_shapes(sides: Sequence[Logits], names: Sequence[str], owner: str) -> None:
    for logits, name in zip(sides, names, strict=True):
        if len(logits.shape) != 3:
            raise ShapeError(
                f"are {list(logits.shape)}, but {owner} declares whole_sequences, so it needs [batch, length, classes]. "
                "Return logits of sequences from the adaptor, or use a loss without the declaration",
                field=f"{name}.logits",
            )
    own, *others = sides
    for logits, name in zip(others, names[1:], strict=True):
        if logits.shape[:-1] != own.shape[:-1]:
            raise ShapeError(
                f"the student's {list(own.shape)} and those of the {name} {list(logits.shape)} differ in batch or length, "
                f"but {owner} declares whole_sequences, so it compares logits position by position",
                field="logits",
            )


def _shared(
    logits: Logits, masks: Sequence[Tensor | None], names: Sequence[str], owner: str
) -> tuple[Tensor, Tensor | None]:
    """Return the mask of all sides and the places where it is 1; no places without a mask."""
    shape = logits.shape[:-1]
    found: tuple[str, Tensor, Tensor] | None = None
    for mask, name in zip(masks, names, strict=True):
        if mask is None:
            continue
        if mask.shape != shape:
            raise ShapeError(
                f"a mask of shape {list(mask.shape)} does not match logits {list(logits.shape)}: it must be "
                f"{list(shape)}, one value per position{extended_hint(mask)}",
                field=f"{name}.logits_mask",
            )
        places = places_that_count(mask, field=f"{name}.logits_mask")
        if found is None:
            found = name, mask.bool(), places
        elif not torch.equal(places, found[2]):
            raise _differ(found[:2], (name, mask.bool()), owner)
    return (torch.ones(shape, dtype=torch.bool, device=logits.device), None) if found is None else found[1:]


def _differ(one: tuple[str, Tensor], other: tuple[str, Tensor], owner: str) -> OutputsError:
    example, position = (one[1] != other[1]).nonzero()[0].tolist()
    ours, theirs = (f"{int(mask[example, position])} for the {name}" for name, mask in (one, other))
    return OutputsError(
        f"is {ours} and {theirs} at example {example}, position {position}, but {owner} declares whole_sequences, so "
        "both masks must be equal. Return equal masks from the adaptors",
        field="logits_mask",
    )


def _in_a_row(logits: Logits) -> Logits:
    if isinstance(logits, Tensor):
        return logits.flatten(0, 1)
    if isinstance(logits, FactoredLogits):
        return replace(logits, hidden=logits.hidden.flatten(0, 1))
    return _at(logits, torch.arange(logits.shape[:-1].numel(), device=logits.device))


def _at(logits: Logits, places: Tensor) -> Logits:
    return keep(logits, places, 1) if isinstance(logits, Tensor) else logits.at(places)
