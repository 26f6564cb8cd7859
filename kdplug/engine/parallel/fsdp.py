"""A frozen teacher spread over the processes, with ``fully_shard`` itself: accelerate prepares one model, the student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError

_SHARDED = "full_tensor"
"""What a DTensor has and no other tensor; asking for it is cheaper than the import of FSDP."""


def is_sharded(value: Any) -> bool:
    """Whether a tensor is spread over the processes."""
    return hasattr(value, _SHARDED)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor, and any other tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(value: Any, *, keep: bool = True) -> Any:
    """``value``, a tree of plain data and tensors, with each sharded tensor gathered on the CPU. Every process has to ask.

    One that does not ``keep`` what is gathered gets ``None`` in its place.
    """
    if is_sharded(value):
        full = value.full_tensor()
        return full.to("cpu", copy=True) if keep else None  # a copy: shards of unequal size leave it a view
    if isinstance(value, Mapping):
        return {key: whole(inner, keep=keep) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(inner, keep=keep) for inner in value)
    return value


class Gathered(nn.Module):
    """What was gathered of a module, in the form in which a checkpoint reads a module: it has a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self, *_args: Any, **_settings: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self._state)


def gathered(module: nn.Module, *, keep: bool = True) -> nn.Module:
    """``module``, or where it is sharded its whole weights on the CPU; tied ones are one tensor. Every process has to ask.

    One that does not ``keep`` them gets none.
    """
    held = module.state_dict()  # FSDP lets go of what is gathered when it is asked for this, so it comes first
    if not any(map(is_sharded, held.values())):
        return module
    own = {name: id(value) for name, value in module.named_parameters(remove_duplicate=False)}
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in held.items():
        key = own.get(name, id(value))
        if key not in found:
            found[key] = whole(value, keep=keep)
        state[name] = found[key]
    return Gathered(state if keep else {})


def sharded_like(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved state of an optimizer, each tensor sharded as its parameter is."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_sharded, held)):
        return dict(saved)
    state = {place: _like(held[place], values) for place, values in saved["state"].items() if place < len(held)}
    return {**saved, "state": state}


def _like(parameter: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    from torch.distributed.tensor import distribute_tensor

    if not is_sharded(parameter):
        return dict(values)
    mesh, placements = parameter.device_mesh, parameter.placements
    return {
        name: distribute_tensor(value.to(parameter.device), mesh, placements)
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }


@contextmanager
def called_alone(student: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside the block a sharded student may be called outside its pair; afterwards nothing of it stays gathered."""
    try:
        yield
    finally:
        if accelerator.is_fsdp2:
            from torch.distributed.fsdp import FSDPModule

            if isinstance(student, FSDPModule):
                student.reshard()


def shard_pair(accelerator: Accelerator, pair: TrainingModule, optimizer: Optimizer) -> Optimizer:
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


def _check(pair: TrainingModule, optimizer: Optimizer) -> None:
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


def _autocast(pair: TrainingModule, accelerator: Accelerator) -> None:
    forward = pair.forward

    @wraps(forward)
    def cast(*arguments: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments)

    pair.forward = cast  # type: ignore[method-assign, assignment]


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


def _models(teacher: TeacherSide) -> Iterator[nn.Module]:
    """The model of each single teacher in an ensemble, or in one for each task."""
    for side in getattr(teacher, "teachers", {"": teacher}).values():
        if side is teacher:
            yield side.model
        else:
            yield from _models(side)


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    mesh = accelerator.torch_device_mesh
    if mesh is None:
        return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    chosen: DeviceMesh = mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    return chosen
