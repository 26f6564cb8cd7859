"""What the objective reads of a transformers model where no adaptor says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdplug.contracts.outputs import Outputs


def adapt(batch: Mapping[str, Any], outputs: Any) -> Outputs:
    """The model's outputs, with ``attention_mask`` as the mask of features, and of logits that are one per token, and with
    the batch's ``labels``.

    ``labels`` of -100 mask nothing here: they say where the student's own loss counts. An adaptor can say otherwise.
    """
    read = Outputs.read(outputs, "outputs")
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    more: dict[str, Any] = {}
    if isinstance(mask, Tensor) and mask.dim() == 2:
        more["inputs_mask"] = mask
        if read.logits and all(len(logits.shape) == 3 and logits.shape[:2] == mask.shape for logits in read.logits):
            more["logits_mask"] = mask
    if isinstance(labels, Tensor):
        more["labels"] = labels
    return replace(read, **more)
