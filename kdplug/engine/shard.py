"""Parameters spread over the processes (FSDP2), and whole again for what is written down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from kdplug.engine.pair import Pair
from kdplug.engine.teacher import TeacherSide
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
        torch.distributed.broadcast(tensor.data, src=0)
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False
    _with_student(plugin, pair.student)
    _, prepared = accelerator.prepare(pair, optimizer)
    if isinstance(pair.student, FSDPModule):
        pair.student.set_reshard_after_forward(False, recurse=False)
    if accelerator.native_amp:
        _autocast(pair, accelerator)
    wrapped: Optimizer = prepared
    return wrapped


def _check(pair: Pair, optimizer: Optimizer) -> None:
    if any(isinstance(parameter, DTensor) for parameter in pair.parameters()):
        raise RunError("an earlier run has sharded the student: build it anew and load a checkpoint into it")
    if optimizer.state:
        raise RunError("FSDP begins with an optimizer that has taken no step; this one has. Build it anew")
    own = {id(parameter) for parameter in pair.parameters()}
    others = sum(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"])
    if others:
        raise RunError(
            f"the optimizer holds {others} parameter(s) of neither student nor objective, which FSDP cannot train"
        )


def _with_student(plugin: Any, student: nn.Module) -> None:
    """Have accelerate make a unit of the student too."""
    policy = plugin.auto_wrap_policy
    if policy is size_based_auto_wrap_policy:
        return
    chosen = list(getattr(student, "_no_split_modules", None) or ())
    if policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is not None:
        chosen = list(plugin.transformer_cls_names_to_wrap)
    blocks = chosen if policy is transformer_auto_wrap_policy else []
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = [*blocks, type(student).__name__]


def _autocast(pair: Pair, accelerator: Accelerator) -> None:
    forward = pair.forward

    @wraps(forward)
    def cast(*arguments: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments)

    pair.forward = cast  # type: ignore[method-assign]


def shard_teacher(accelerator: Accelerator, teacher: TeacherSide) -> None:
    """Shard each frozen teacher in place, over the processes that the student is sharded over.

    A block is a module of a class that the model names in ``_no_split_modules`` (transformers' models do), or else an element
    of an ``nn.ModuleList``; what is in no block forms one unit more. Blocks reach the device one by one.
    """
    mesh = _mesh(accelerator)
    for model in _models(teacher):
        if not isinstance(model, FSDPModule):
            for block in [*blocks(model), model]:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time, outermost ones only."""
    names = frozenset(getattr(model, "_no_split_modules", None) or ())
    return list(_outermost(model, names))


def _outermost(module: nn.Module, names: frozenset[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if (type(child).__name__ in names) if names else isinstance(module, nn.ModuleList):
            yield child
        else:
            yield from _outermost(child, names)


def _models(teacher: TeacherSide) -> Iterable[nn.Module]:
    sides = getattr(teacher, "teachers", None)
    return [side.model for side in sides.values()] if sides else [teacher.model]


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    mesh = accelerator.torch_device_mesh
    if mesh is None:
        return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    return mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]


def whole(value: Any) -> Any:
    """``value``, a tree of plain data and tensors, with each sharded tensor gathered. Every process has to ask."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(inner) for inner in value)
    return value
