"""The control ``shuffled``: each example gets the teacher outputs of another one of the same predicted class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdplug.config.recipe import Recipe
from kdplug.config.teacher import SELF
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.contracts.task import PreparesBatches, Task
from kdplug.engine.cache.content import RequiredOutputs, length_dims
from kdplug.errors import ConfigError
from kdplug.objective.batch import places_that_count
from kdplug.objective.objective import Objective
from kdplug.objective.selection import head_masks, is_ignored
from kdplug.recipes.arm import Arm

QUANTILES = 4
"""Groups of a batch by the teacher's value, for logits of a single number (regression)."""

BATCHES = 20
"""Batches on which singletons are counted before the training."""

MOST_SINGLETONS = 0.2
"""Largest share of singletons, which keep their own teacher outputs."""

_CHUNK = 1 << 24
"""Maximum number of logits that are multiplied out at once."""

_FIELD = "controls"


def check_shuffled(recipe: Recipe, task: Task) -> None:
    """Raise ``ConfigError`` for the control ``shuffled`` if the recipe has no separate teacher, or if batches are generated."""
    if Arm.SHUFFLED in recipe.controls and recipe.teacher in (None, SELF):
        raise _refused(
            "the recipe has no teacher apart from the student, so there are no outputs to exchange. Remove shuffled"
        )
    if Arm.SHUFFLED in recipe.controls and isinstance(task, PreparesBatches) and task.prepares_batches:
        raise _refused(
            f"task {recipe.task.name!r} generates batches with the student during training, so each student would be "
            "trained on other examples. Disable the task's setting that generates batches, or remove shuffled"
        )


def check_share(share: float, batch_size: int) -> None:
    """Raise ``ConfigError`` if too many examples would keep their own teacher outputs."""
    if share > MOST_SINGLETONS:
        raise _refused(
            f"in the first batches of {batch_size} examples, {share:.0%} of the teacher outputs are the only one of their "
            f"predicted class and cannot be exchanged; the limit is {MOST_SINGLETONS:.0%}. Increase training.batch_size, "
            "or remove shuffled"
        )


class Cycle(NamedTuple):
    """A cyclic shift within groups: the ``source`` of each unit, and the number of ``singletons``, groups of one unit."""

    source: Tensor
    singletons: Tensor


def cycle(keys: Sequence[Tensor]) -> Cycle:
    """Shift units cyclically within groups of equal keys, in the order of the units. Nothing waits for the device.

    Shapes: keys ``[units]`` each, one or more.
    """
    order = torch.arange(len(keys[0]), device=keys[0].device)
    places = order.clone()
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = torch.stack([key[order][1:] != key[order][:-1] for key in keys]).any(0)
    is_last = is_first.roll(-1)
    start = torch.where(is_first, places, 0).cummax(0).values
    source = torch.empty_like(order)
    source[order] = order[torch.where(is_last, start, places + 1)]
    return Cycle(source, (is_first & is_last).sum())


class Shuffle:
    """Shifts teacher outputs within a batch. ``units`` and ``singletons`` count those of all batches so far.

    A unit is an example, or a position that counts if the logits have one row per position. Units are grouped by the class
    with the highest teacher logit, by all heads together, or by quantiles of a single number. Features that the objective
    reads follow their example. Masks, and positions that do not count, stay unchanged.
    """

    def __init__(self, objective: Objective) -> None:
        self.units = 0
        self.singletons: Tensor | int = 0
        self._objective = objective
        self._shapes: dict[str, torch.Size] = {}

    @torch.no_grad()
    def __call__(self, student: object, teacher: object) -> Outputs:
        """Return the shifted outputs of the teacher for a batch with these outputs of the student.

        Raises: ``ConfigError`` if the objective reads no logits of the teacher, or outputs that cannot be shifted.
        """
        own, theirs = Outputs.read(student, "student"), Outputs.read(teacher, "teacher")
        required = RequiredOutputs.of(self._objective)
        if not required.logits or not theirs.logits:
            raise _refused(
                "no loss reads logits of the teacher, so its outputs have no predicted classes. Add a loss on logits, or "
                "remove shuffled"
            )
        items = theirs.logits[0].shape[:-1]
        if any(head.shape[:-1] != items for head in theirs.logits):
            shapes = ", ".join(str(list(head.shape)) for head in theirs.logits)
            raise _refused(f"the heads of the teacher's logits have different items: {shapes}. Remove shuffled")
        self._check_features(theirs, required, items, has_mask=_has_mask(own, theirs))
        count = items.numel()
        units = _counting(own, theirs, items)
        if not (count if units is None else len(units)):
            return theirs
        found = cycle([_key(head, units) for head in theirs.logits])
        self.units += len(found.source)
        self.singletons = self.singletons + found.singletons
        if units is None:
            source = found.source
        else:
            source = torch.arange(count, device=units.device)
            source[units] = units[found.source]
        return _taken(theirs, required, source)

    @property
    def share(self) -> float:
        """The share of units that keep their own teacher outputs. Waits for the device."""
        return float(self.singletons) / max(self.units, 1)

    def _check_features(
        self, outputs: Outputs, required: RequiredOutputs, items: torch.Size, *, has_mask: bool
    ) -> None:
        """Raise ``ConfigError`` unless every feature that a loss reads has one row of a fixed shape per example."""
        for name, tensor in _features(outputs, required):
            shape = tensor.shape
            if len(items) > 1:
                raise _refused(f"{_shown(name)} cannot follow logits that have one row per position. Remove shuffled")
            if not shape or shape[0] != items[0]:
                raise _refused(
                    f"{_shown(name)} {list(shape)} does not have one row for each of {items[0]} examples. Remove shuffled"
                )
            known = self._shapes.setdefault(name, shape[1:])
            if known != shape[1:] or (has_mask and length_dims(name, shape)):
                raise _refused(
                    f"{_shown(name)} {list(shape)} is a feature of a sequence, whose positions do not match those of another "
                    "example. Remove the losses on sequence features, or remove shuffled"
                )


def _refused(why: str) -> ConfigError:
    return ConfigError(f"cannot contain shuffled: {why} from controls", field=_FIELD)


def _shown(name: str) -> str:
    return f"the teacher's {name.replace('/', ' ', 1)}"


def _has_mask(*sides: Outputs) -> bool:
    return any(side.inputs_mask is not None for side in sides)


def _counting(student: Outputs, teacher: Outputs, items: torch.Size) -> Tensor | None:
    """Return the flat places of the units that count, ``None`` if all do. As in a loss, the teacher's own mask comes first.

    Raises: ``ConfigError`` if heads have different masks, or a mask that does not match the logits.
    """
    assert teacher.logits is not None
    heads = len(teacher.logits)
    found: list[Tensor] = []
    for side, name in ((teacher, "teacher"), (student, "student")):
        masks = head_masks(side, len(side.logits or ()) if name == "student" else heads, name)
        found = [mask for mask in masks if mask is not None and not is_ignored(mask, teacher.logits[0])]
        if found:
            break
    if not found:
        return None
    if any(mask is not found[0] and not torch.equal(mask, found[0]) for mask in found[1:]):
        raise _refused("the heads of the teacher's logits have different masks. Remove shuffled")
    if found[0].shape != items:
        raise _refused(
            f"a mask {list(found[0].shape)} does not match the teacher's logits {list(items)}. Return a logits_mask from the "
            "teacher's adaptor, or remove shuffled"
        )
    return places_that_count(found[0], field=f"{name}.logits_mask")


def _key(logits: Any, units: Tensor | None) -> Tensor:
    """Return the group of each unit: its predicted class, or the quantile of its value."""
    if logits.shape[-1] == 1 and isinstance(logits, (Tensor, FactoredLogits)):
        values = (logits if isinstance(logits, Tensor) else logits.dense()).reshape(-1)
        values = values if units is None else values[units]
        return values.argsort(stable=True).argsort() * QUANTILES // len(values)
    classes = _classes(logits).reshape(-1)
    return classes if units is None else classes[units]


def _classes(logits: Any) -> Tensor:
    """Return the class with the highest logit of each item."""
    if isinstance(logits, SparseLogits):
        known = logits.log_probs if logits.log_probs is not None else logits.weights
        assert known is not None
        return logits.ids.gather(-1, known.argmax(-1, keepdim=True))
    if isinstance(logits, FactoredLogits):
        rows = torch.arange(logits.shape[:-1].numel(), device=logits.device)
        size = max(1, _CHUNK // logits.classes)
        return torch.cat([logits.at(part).dense().argmax(-1) for part in torch.split(rows, size)])
    found: Tensor = logits.argmax(-1)
    return found


def _features(outputs: Outputs, required: RequiredOutputs) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each feature and extra that a loss reads; a missing one is reported by the loss."""
    for key in required.layers:
        layers = getattr(outputs, key) or ()
        for index in sorted({index % len(layers) for index in required.layers[key] if layers}):
            yield f"{key}/{index}", layers[index]
    for key, names in (("captured", required.captured), ("extras", required.extras)):
        held = getattr(outputs, key) or {}
        yield from ((f"{key}/{name}", held[name]) for name in names if name in held)


def _taken(outputs: Outputs, required: RequiredOutputs, source: Tensor) -> Outputs:
    """Return the outputs with the logits, and each feature that a loss reads, of ``source``."""
    count = len(source)

    def take(tensor: Tensor) -> Tensor:
        return tensor.reshape(count, -1).index_select(0, source.to(tensor.device)).reshape(tensor.shape)

    moved = {name: take(tensor) for name, tensor in _features(outputs, required)}
    changes: dict[str, Any] = {"logits": tuple(_taken_logits(head, take) for head in outputs.logits or ())}
    for key in required.layers:
        layers = getattr(outputs, key)
        if layers is not None:
            changes[key] = tuple(moved.get(f"{key}/{index}", layer) for index, layer in enumerate(layers))
    for key in ("captured", "extras"):
        held = getattr(outputs, key)
        if held is not None:
            changes[key] = {name: moved.get(f"{key}/{name}", tensor) for name, tensor in held.items()}
    return replace(outputs, **changes)


def _taken_logits(logits: Any, take: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(logits, SparseLogits):
        return logits.map_parts(take)
    return replace(logits, hidden=take(logits.hidden)) if isinstance(logits, FactoredLogits) else take(logits)
