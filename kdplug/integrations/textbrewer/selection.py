"""Which logits count, and a teacher that is always right."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdplug.contracts.item import keep
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.mask import extended_hint, places_that_count
from kdplug.objective.probability_shift import shift

__all__ = ["probability_shift_", "select_logits_with_mask"]


def select_logits_with_mask(logits_list: Sequence[Tensor], masks_list: Sequence[Tensor]) -> list[Tensor]:
    """The logits of each head where its mask is 1; one mask serves all heads.

    Shapes: logits ``[batch, length, classes]`` and masks ``[batch, length]`` to ``[n, classes]``; logits ``[batch,
    classes]`` stay as they are.
    Raises: ``OutputsError`` where there is neither one mask nor one for each head, and for what is no mask; ``ShapeError``
    for a mask of another shape.
    """
    masks = spread(masks_list, len(logits_list))
    return [
        _kept(logits, mask) if logits.dim() == 3 else logits for logits, mask in zip(logits_list, masks, strict=True)
    ]


def _kept(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != logits.shape[:-1]:
        raise ShapeError(
            f"{list(mask.shape)} does not fit logits {list(logits.shape)}: one value per item{extended_hint(mask)}",
            field="logits_mask",
        )
    return keep(logits, places_that_count(mask, field="logits_mask"), 1)


def select_labels(labels: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """The labels of one head that go with its selected logits: ``[n]`` where a mask was applied, one per item else."""
    items = logits.shape[:-1]
    if mask is not None and labels.numel() == mask.numel() != items.numel():
        return labels.reshape(mask.shape)[mask != 0]
    return labels.reshape(items)


def spread(masks: Sequence[Tensor], heads: int) -> Sequence[Tensor]:
    """One mask per head. Raises: ``OutputsError`` where there is neither one mask nor one for each head."""
    if len(masks) == heads:
        return masks
    if len(masks) == 1:
        return list(masks) * heads
    raise OutputsError(
        f"{len(masks)} masks for {heads} heads of logits. Give one for all, or one each", field="logits_mask"
    )


def probability_shift_(tensor: Tensor, labels: Tensor) -> Tensor:
    """Swap, item by item and in place, the largest logit with the one at the label; a negative label changes nothing.

    Shapes: logits ``[*items, classes]``, labels as many as items.
    """
    return tensor.copy_(shift(tensor, labels.reshape(tensor.shape[:-1])))
