"""Factors that are spread over processes, made whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


def gathered(logits: Logits) -> Logits:
    """The logits with the head's weight and bias whole on each process, where FSDP keeps a part of them on each.

    The gradient goes back to the parts as FSDP takes it there: the mean over the processes.
    """
    if not isinstance(logits, FactoredLogits):
        return logits
    weight, bias = _whole(logits.weight), None if logits.bias is None else _whole(logits.bias)
    return logits if weight is logits.weight and bias is logits.bias else replace(logits, weight=weight, bias=bias)


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):  # what a DTensor has; asking for it is cheaper than importing the class
        return tensor
    from torch.distributed.tensor import Partial

    sharded = cast("Any", tensor)
    mesh = sharded.device_mesh
    found = cast("Tensor", sharded.full_tensor(grad_placements=[Partial()] * mesh.ndim))
    if found.requires_grad:
        found.register_hook(lambda gradient: gradient / mesh.size())  # type: ignore[no-untyped-call]
    return found
