"""FSDP2: shard student and objective, and the frozen teacher, which accelerate cannot prepare as a second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kdplug.contracts.tree import map_leaves
from kdplug.engine.parallel.process import broadcast
from kdplug.engine.teacher import TeacherSide
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError
from kdplug.objective.objective import Objective

_SHARDED = "full_tensor"
"""An attribute that only a DTensor has; looking it up is cheaper than importing FSDP."""


def is_sharded(value: Any) -> bool:
    """Return whether a tensor is sharded over the processes."""
    return hasattr(value, _SHARDED)


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other tensor as it is."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(value: Any, *, keep: bool = True) -> Any:
    """Return a tree of plain data and tensors with sharded tensors gathered on the CPU. Every process calls it.

    A process that does not ``keep`` the gathered tensors gets ``None`` in their place.
    """

    def gather(leaf: Any) -> Any:
        if not is_sharded(leaf):
            return leaf
        full = leaf.full_tensor()
        return full.to("cpu", copy=True) if keep else None  # copied, since with shards of unequal size it is a view

    return map_leaves(gather, value)


class Gathered(nn.Module):
    """The gathered weights of a module, with a ``state_dict`` for checkpoints."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self._state = state

    def state_dict(self, *_args: Any, **_settings: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self._state)


def gathered(module: nn.Module, *, keep: bool = True) -> nn.Module:
    """Return ``module``, or its whole weights on the CPU if sharded; tied ones are one tensor. Every process calls it.

    A process that does not ``keep`` the weights gets none.
    """
    held = module.state_dict()  # first, since this makes FSDP reshard gathered weights
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
    """Return the saved state of an optimizer, with each tensor sharded like its parameter."""
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
    """Allow calls of a sharded student outside its ``TrainingModule`` within the block; reshard it afterwards."""
    try:
        yield
    finally:
        if accelerator.is_fsdp2:
            from torch.distributed.fsdp import FSDPModule

            if isinstance(student, FSDPModule):
                student.reshard()


def shard_pair(accelerator: Accelerator, pair: TrainingModule, optimizer: Optimizer) -> Optimizer:
    """Shard student and objective in place, move ``optimizer`` to the shards, and return it as wrapped by accelerate.

    All processes start with the weights of the main process. The student is a separate FSDP unit, so that it can be
    called alone; its blocks follow the FSDP plugin. Precision is autocast's, as without FSDP: parameters are gathered
    in their own dtype.

    Raises: ``RunError`` if another run has sharded the student, the optimizer holds other parameters, or a loss reads
    parameters of the student.
    """
    _check(pair, optimizer)
    check_unsharded(pair.objective)
    for tensor in [*pair.parameters(), *pair.buffers()]:
        broadcast(tensor)
    with _settings(accelerator.state.fsdp_plugin, pair.student):
        _, prepared = accelerator.prepare(pair, optimizer)
    if isinstance(pair.student, FSDPModule):
        pair.student.set_reshard_after_forward(False, recurse=False)
    if accelerator.native_amp:
        _autocast(pair, accelerator)
    wrapped: Optimizer = prepared
    return wrapped


def check_unsharded(objective: nn.Module) -> None:
    """Check that no loss in ``objective`` reads parameters of the student, before FSDP shards them.

    Raises: ``RunError`` that names the term's path.
    """
    for module in objective.modules():
        if isinstance(module, Objective):
            for term in module.configured.terms():
                if term.named.paths["student"]:
                    raise term.place.locate(
                        RunError(
                            f"{term.owner} reads parameters of the student, which FSDP shards over the processes. Use DDP, or "
                            "another loss",
                            field="reads_S",
                        )
                    )


def _check(pair: TrainingModule, optimizer: Optimizer) -> None:
    if any(isinstance(parameter, DTensor) for parameter in pair.parameters()):
        raise RunError("an earlier run has sharded the student. Build a new student, and load a checkpoint into it")
    if optimizer.state:
        raise RunError("FSDP needs a new optimizer, and this one has already taken a step. Build a new optimizer")
    scalars = [name for name, parameter in pair.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise RunError(f"FSDP cannot shard a 0-dimensional parameter: give {scalars[0]} the shape (1,)")
    own = {id(parameter) for parameter in pair.parameters()}
    others = sum(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"])
    if others:
        raise RunError(
            f"the optimizer holds parameters of neither student nor objective ({others} in all), which FSDP cannot train. "
            "Build the optimizer from student.parameters()"
        )


_CHANGED = ("mixed_precision_policy", "cpu_ram_efficient_loading", "auto_wrap_policy", "transformer_cls_names_to_wrap")


@contextmanager
def _settings(plugin: Any, student: nn.Module) -> Iterator[None]:
    """Set the FSDP plugin to the settings that sharding needs, within the block."""
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
    """Have accelerate make the student an FSDP unit, in addition to those of the plugin."""
    policy = plugin.auto_wrap_policy
    size = sum(parameter.numel() for parameter in student.parameters())
    if policy is size_based_auto_wrap_policy and 0 < plugin.min_num_params < size:
        return  # the student is large enough to be a unit
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
    """Shard each frozen teacher in place, over the same processes as the student.

    A block is a module whose class the model names in ``_no_split_modules`` (transformers' models do), or else an
    element of an ``nn.ModuleList``. Everything outside blocks forms one more unit. Blocks are moved to the device one
    by one.
    """
    mesh = _mesh(accelerator)
    for model in _models(teacher):
        if not isinstance(model, FSDPModule):
            for block in [*blocks(model), model]:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that are gathered one at a time."""
    names = frozenset(getattr(model, "_no_split_modules", None) or ())
    return list(_outermost(model, names))


def _outermost(module: nn.Module, names: frozenset[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if (type(child).__name__ in names) if names else isinstance(module, nn.ModuleList):
            yield child
        else:
            yield from _outermost(child, names)


def _models(teacher: TeacherSide) -> Iterator[nn.Module]:
    """Yield the model of each single teacher, also in an ensemble or in one for each task."""
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
