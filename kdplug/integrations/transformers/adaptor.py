"""What the objective reads of a transformers model where no adaptor says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from kdplug.contracts.outputs import Outputs
from kdplug.integrations.transformers.window import IGNORED


def adapt(batch: Mapping[str, Any], outputs: Any, *, shifted: bool = False) -> Outputs:
    """The model's outputs, with ``attention_mask`` as the mask of features, and of logits that are one per token, and with
    the batch's ``labels``. ``shifted`` is for a causal model, whose logits at a position predict the next label: each label
    moves to the logits that predict it, and the last position has none.

    ``labels`` of -100 mask nothing here: they say where the student's own loss counts. An adaptor can say otherwise.
    """
    read = Outputs.read(outputs, "outputs")
    mask, labels = batch.get("attention_mask"), _labels(batch, shifted=shifted)
    more: dict[str, Any] = {}
    if isinstance(mask, Tensor) and mask.dim() == 2:
        more["inputs_mask"] = mask
        if read.logits and all(len(logits.shape) == 3 and logits.shape[:2] == mask.shape for logits in read.logits):
            more["logits_mask"] = mask
    if isinstance(labels, Tensor):
        more["labels"] = labels
    return replace(read, **more)


def _labels(batch: Mapping[str, Any], *, shifted: bool) -> Any:
    """The labels, each at the position of the logits that predict it. A collator may have shifted them already."""
    labels = batch.get("labels")
    if not shifted:
        return labels
    ready = batch.get("shift_labels")
    if ready is not None or not isinstance(labels, Tensor):
        return ready
    return pad(labels[..., 1:], (0, 1), value=IGNORED)
