"""The heads of a teacher's logits, taken out of its other outputs to be coded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.engine.cache_content import Content
from kdplug.errors import RunError
from kdplug.objective.mask import check_mask, extended_hint
from kdplug.objective.selection import head_masks, is_ignored


def take_heads(content: Content, outputs: Outputs) -> dict[str, tuple[Any, Tensor | None]]:
    """Each head with the mask that counts for it, by name; neither is in ``content`` afterwards.

    Raises: ``RunError`` for a mask that does not fit; ``OutputsError`` where there are not as many as heads, and for a mask
    that holds something other than 0 and 1.
    """
    heads = {name: logits for name, logits in content.tensors.items() if name.startswith("logits/")}
    for name in [*heads, *(name for name in content.tensors if name.startswith("logits_mask/"))]:
        del content.tensors[name]
    if not heads:
        return {}
    masks = head_masks(outputs, len(heads), "teacher")
    found = {name: (one, _fitting(name, one, mask)) for (name, one), mask in zip(heads.items(), masks, strict=True)}
    if any(mask is not None for _, mask in found.values()):
        return {name: (one, _all_of(one) if mask is None else mask) for name, (one, mask) in found.items()}
    return found


def _fitting(name: str, logits: Any, mask: Tensor | None) -> Tensor | None:
    if mask is None or (len(logits.shape) == 2 and is_ignored(mask, torch.empty(logits.shape, device="meta"))):
        return None
    if mask.shape != logits.shape[:-1]:
        raise RunError(
            f"the teacher's logits_mask {list(mask.shape)} does not fit its {name} {list(logits.shape)}: one value per item"
            f"{extended_hint(mask)}",
            field="teacher_cache_codec",
        )
    check_mask(mask, "", field="teacher.logits_mask")
    return mask


def _all_of(logits: Any) -> Tensor:
    return torch.ones(logits.shape[:-1], dtype=torch.bool)
