"""Parameters spread over the processes: FSDP2, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kdplug.engine.pair import Pair
from kdplug.errors import RunError


def shard_pair(accelerator: Accelerator, pair: Pair, optimizer: Optimizer) -> Optimizer:
    """Shard student and objective in place, and have ``optimizer`` hold the shards; gives it as accelerate wraps it.

    Everyone begins with the weights of the main process. The student is a unit of its own inside the pair, so that it can be
    called alone, and its blocks are as the FSDP plugin says. Precision is autocast's, as without FSDP: parameters are
    gathered in their own dtype.

    Raises: ``RunError`` where another run has sharded the student, or the optimizer has something else to train.
    """
    _check(pair, optimizer)
    for tensor in [*pair.parameters(), *pair.buffers()]:
        _broadcast(tensor)
    with _settings(accelerator.state.fsdp_plugin, pair.student):
        _, prepared = accelerator.prepare(pair, optimizer)
    if isinstance(pair.student, FSDPModule):
        pair.student.set_reshard_after_forward(False, recurse=False)
    if accelerator.native_amp:
        _autocast(pair, accelerator)
    wrapped: Optimizer = prepared
    return wrapped


def _broadcast(tensor: Tensor) -> None:
    """Everyone gets the main process's values, as bytes: not every backend sends every dtype."""
    held = tensor.detach().contiguous()
    torch.distributed.broadcast(held.reshape(-1).view(torch.uint8), src=0)
    with torch.no_grad():
        tensor.copy_(held)


def _check(pair: Pair, optimizer: Optimizer) -> None:
    if any(isinstance(parameter, DTensor) for parameter in pair.parameters()):
        raise RunError("an earlier run has sharded the student: build it anew and load a checkpoint into it")
    if optimizer.state:
        raise RunError("FSDP begins with an optimizer that has taken no step; this one has. Build it anew")
    scalars = [name for name, parameter in pair.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise RunError(f"FSDP cannot shard a parameter without a dimension: give {scalars[0]} the shape (1,)")
    own = {id(parameter) for parameter in pair.parameters()}
    others = sum(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"])
    if others:
        raise RunError(
            f"the optimizer holds {others} parameter(s) of neither student nor objective, which FSDP cannot train"
        )


_CHANGED = ("mixed_precision_policy", "cpu_ram_efficient_loading", "auto_wrap_policy", "transformer_cls_names_to_wrap")


@contextmanager
def _settings(plugin: Any, student: nn.Module) -> Iterator[None]:
    """The FSDP plugin as the pair needs it; afterwards it is as before."""
    before = {name: getattr(plugin, name) for name in _CHANGED}
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False
    _with_student(plugin, student)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(plugin, name, value)


def _with_student(plugin: Any, student: nn.Module) -> None:
    """Have accelerate make a unit of the student, besides those that the plugin asks for."""
    policy = plugin.auto_wrap_policy
    size = sum(parameter.numel() for parameter in student.parameters())
    if policy is size_based_auto_wrap_policy and 0 < plugin.min_num_params < size:
        return  # the student is large enough to be one
    chosen: list[str] = []
    if policy is transformer_auto_wrap_policy:
        chosen = list(plugin.transformer_cls_names_to_wrap or getattr(student, "_no_split_modules", None) or ())
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = [*chosen, type(student).__name__]


def _autocast(pair: Pair, accelerator: Accelerator) -> None:
    forward = pair.forward

    @wraps(forward)
    def cast(*arguments: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments)

    pair.forward = cast  # type: ignore[method-assign, assignment]
