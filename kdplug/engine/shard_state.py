"""Sharded tensors made whole for a checkpoint, and whole ones sharded again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

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
