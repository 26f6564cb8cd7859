"""A frozen teacher spread over the processes, with ``fully_shard`` itself: accelerate prepares one model, the student's."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from kdplug.engine.teacher import TeacherSide


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
