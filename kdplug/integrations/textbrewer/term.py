"""The terms of the loss, with TextBrewer's order and arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.contracts.item import keep
from kdplug.contracts.loss import LossSum
from kdplug.contracts.vocabulary import EXAMPLE_IDS
from kdplug.errors import OutputsError, ShapeError
from kdplug.host.textbrewer_maps import KdLoss, TextBrewerCallable
from kdplug.integrations.textbrewer.configurations import DistillationConfig
from kdplug.integrations.textbrewer.log import warn_once
from kdplug.objective.batch import Draws, extended_hint, places_that_count
from kdplug.objective.selection import shift

__all__ = ["probability_shift_", "select_logits_with_mask"]


def select_logits_with_mask(logits_list: Sequence[Tensor], masks_list: Sequence[Tensor]) -> list[Tensor]:
    """Select each head's logits by its mask; a single mask applies to all heads.

    Shapes: logits ``[batch, length, classes]`` and masks ``[batch, length]`` to ``[n, classes]``; logits
    ``[batch, classes]`` are not masked.

    Raises: ``OutputsError`` unless there is one mask or one per head, and for an invalid mask; ``ShapeError`` for a
    mask of another shape.
    """
    masks = spread(masks_list, len(logits_list))
    return [
        _kept(logits, mask) if logits.dim() == 3 else logits for logits, mask in zip(logits_list, masks, strict=True)
    ]


def _kept(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != logits.shape[:-1]:
        raise ShapeError(
            f"the shape {list(mask.shape)} does not match the logits {list(logits.shape)}: it must be "
            f"{list(logits.shape[:-1])}{extended_hint(mask)}",
            field="logits_mask",
        )
    return keep(logits, places_that_count(mask, field="logits_mask"), 1)


def select_labels(labels: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return the labels of one head's selected logits: ``[n]`` if a mask was applied, otherwise one per item."""
    items = logits.shape[:-1]
    if mask is not None and labels.numel() == mask.numel() != items.numel():
        return labels.reshape(mask.shape)[mask != 0]
    return labels.reshape(items)


def spread(masks: Sequence[Tensor], heads: int) -> Sequence[Tensor]:
    """Expand to one mask per head. Raises: ``OutputsError`` unless there is one mask or one per head."""
    if len(masks) == heads:
        return masks
    if len(masks) == 1:
        return list(masks) * heads
    raise OutputsError(
        f"the number of masks is {len(masks)}, but the number of heads of logits is {heads}. Return one mask for all heads, or "
        "one per head",
        field="logits_mask",
    )


def probability_shift_(tensor: Tensor, labels: Tensor) -> Tensor:
    """Swap each item's largest logit with the one at its label, in place; a negative label changes nothing.

    Shapes: logits ``[*items, classes]``; one label per item.
    """
    return tensor.copy_(shift(tensor, labels.reshape(tensor.shape[:-1])))


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the run, seeds of its current step, and the ids of the batch's examples, for losses that take them."""

    progress: float = 0.0
    step: int = 0
    total_steps: float = 0
    epoch: int = 0
    draws: Draws = field(default_factory=Draws)
    example_ids: Tensor | None = None

    def inputs(self) -> dict[str, float]:
        """Return the loss arguments by name, with the seed of the next draw."""
        found = {"progress": self.progress, "step": self.step, "total_steps": self.total_steps, "epoch": self.epoch}
        return {**found, "draw_seed": self.draws.next()}


def weighted(total: Any, term: Any, weight: Any) -> Any:
    """Return ``total + term * weight``; a non-finite term of weight 0 is skipped, since 0 times ``nan`` is ``nan``."""
    if not weight and isinstance(term, Tensor) and not torch.isfinite(term).all():
        return total
    return total + term * weight


def hard_label_loss(losses: Iterable[Tensor | LossSum]) -> Any:
    """Return the sum of the losses' means; with ``DataParallel`` each loss holds one value per device."""
    total: Any = 0
    for loss in losses:
        total = total + (loss.value if isinstance(loss, LossSum) else loss.mean())
    return total


def kd_loss(
    config: DistillationConfig,
    loss: Any,
    student: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> Any:
    """Return the kd loss summed over the heads; the target is the mean of the teachers' logits.

    Each side uses its own mask, or the other side's if it has none; several teachers use the first one's.

    Raises: ``OutputsError`` if labels or logits are missing.
    """
    mask_S = student.get("logits_mask", teachers[0].get("logits_mask"))
    mask_T = teachers[0].get("logits_mask", student.get("logits_mask"))
    ours, theirs = _selected(student, mask_S), [_selected(teacher, mask_T) for teacher in teachers]
    if len(ours) != len(theirs[0]):
        warn_once(
            f"the number of heads is {len(ours)} in the student and {len(theirs[0])} in the teacher: heads without a "
            "counterpart are ignored"
        )
    labels = _labels(student, ours, mask_S) if _asks_for_labels(config, loss) else [None] * len(ours)
    ids = _ids(student, progress.example_ids, mask_S) if requests_ids(loss) else [None] * len(ours)
    total: Any = 0
    for logits_S, logits_T, label, own in zip(ours, zip(*theirs, strict=False), labels, ids, strict=False):
        target = sum(logits_T[1:], start=logits_T[0]) / len(logits_T) if len(logits_T) > 1 else logits_T[0]
        if config.probability_shift:
            target = shift(target, label)
        temperature: Any = config.temperature
        if config.temperature_scheduler is not None:
            temperature = config.temperature_scheduler(logits_S, target, temperature)
        others = {"labels": label, "example_ids": own, **progress.inputs()} if isinstance(loss, KdLoss) else {}
        total = total + loss(logits_S, target, temperature, **others)
    return total


def _selected(outputs: Mapping[str, Any], mask: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if "logits" not in outputs:
        raise OutputsError("missing: the kd loss needs the logits of both models", field="logits")
    logits: Sequence[Tensor] = outputs["logits"]
    return logits if mask is None else select_logits_with_mask(logits, mask)


def _asks_for_labels(config: DistillationConfig, loss: Any) -> bool:
    return config.probability_shift or (isinstance(loss, KdLoss) and "labels" in loss.component.inputs)


def _labels(student: Mapping[str, Any], logits: Sequence[Tensor], mask: Sequence[Tensor] | None) -> list[Any]:
    """Return the labels of each head, selected like its logits."""
    if "labels" not in student:
        raise OutputsError(
            "missing from adaptor_S's result: probability_shift or the kd loss needs them", field="labels"
        )
    masks: Sequence[Any] = [None] * len(logits) if mask is None else spread(mask, len(logits))
    return [select_labels(label, one, kept) for label, one, kept in zip(student["labels"], logits, masks, strict=False)]


def requests_ids(loss: Any) -> bool:
    """Return whether a loss requests ``example_ids``."""
    return isinstance(loss, TextBrewerCallable) and EXAMPLE_IDS in loss.component.inputs


def _ids(student: Mapping[str, Any], ids: Tensor | None, mask: Sequence[Tensor] | None) -> list[Any]:
    """Return, for each head, the id of each selected item's example. Raises: ``ShapeError`` unless there is one per example."""
    heads = student["logits"]
    if ids is None:
        return [None] * len(heads)
    masks: Sequence[Any] = [None] * len(heads) if mask is None else spread(mask, len(heads))
    found = []
    for logits, kept in zip(heads, masks, strict=True):
        items = logits.shape[:-1]
        if items[0] != len(ids):
            raise ShapeError(
                f"there are {len(ids)} ids in the batch, but the shape of the student's logits is {list(logits.shape)}",
                field=EXAMPLE_IDS,
            )
        each = ids.view(-1, *[1] * (len(items) - 1)).expand(items)
        is_masked = kept is not None and logits.dim() == 3
        found.append(keep(each, places_that_count(kept, field="logits_mask"), 0) if is_masked else each)
    return found


def modules_of(entries: Iterable[Any]) -> list[nn.Module]:
    """Return the losses and temperature schedulers that are modules, which are trained with the student."""
    return [
        one.component.target
        for one in entries
        if isinstance(one, TextBrewerCallable) and isinstance(one.component.target, nn.Module)
    ]
