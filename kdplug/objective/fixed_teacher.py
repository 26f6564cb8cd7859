"""Checks that asking a teacher changes nothing in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdplug.errors import RunError

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_WATCHED = 3
"""Passes around which buffers are looked at."""

_IS_TRAINING = attrgetter("training")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FixedTeacher:
    """Checks the forward passes of a model that is read and never trained; ``before`` and ``after`` go around each.

    After each pass every module must be in eval mode. The first pass, and what is trained until the third, must leave persistent
    buffers as they were (the first pass may serve to find widths, before anything is trained). A buffer registered with
    ``persistent=False`` is memory that the model works with (a KV cache, a counter) and may change. Values are summed up on
    their device, and waited for in these passes alone.
    """

    def __init__(self, model: nn.Module, name: str = "teacher") -> None:
        self._model = model
        self._name = name
        self._modules: tuple[nn.Module, ...] = ()
        self._sums: dict[str, list[int]] = {}
        self._passes = 0
        self.watches_buffers = True

    def before(self) -> None:
        """Needed while it ``watches_buffers``. Raises: ``RunError`` where a buffer changed since the first pass."""
        if not self._passes:
            self._sums = _checksums(self._model)
        elif changed := self._changed():
            raise RunError(
                f"the {self._name}'s buffer {changed!r} changed between two forward passes: something that is trained writes to "
                "the same memory. Copy the teacher (copy.deepcopy)"
            )

    def after(self) -> None:
        """Raises: ``RunError`` where a module is in train mode, or the first pass changed a buffer."""
        if not self._passes:
            self._modules = tuple(self._model.modules())
        if any(map(_IS_TRAINING, self._modules)):
            raise self._in_train_mode()
        if self.watches_buffers:
            self._passed()

    def _passed(self) -> None:
        if not self._passes and (changed := self._changed()):
            raise RunError(
                f"a forward pass of the {self._name} changed its buffer {changed!r}, so that its outputs depend on the batches before. "
                "Have batch norm use its running statistics; register memory that the model works with (a KV cache, a counter) "
                "with persistent=False"
            )
        self._passes += 1
        self.watches_buffers = self._passes < _WATCHED

    def _changed(self) -> str:
        """The first buffer whose value is another than at first."""
        now = _checksums(self._model)
        return next((name for name, sums in self._sums.items() if now.get(name, sums) != sums), "")

    def _in_train_mode(self) -> RunError:
        found = [(name, module) for name, module in self._model.named_modules() if module.training]
        name, module = found[0]
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        number = "is" if len(found) == 1 else f"and {len(found) - 1} more module(s) are"
        return RunError(
            f"after a forward pass of the {self._name}, {where} {number} in train mode, in which dropout is on and batch norm learns "
            "from the batch. A run puts its teachers in eval mode; remove the call of train(), from the model's forward perhaps"
        )


def checked(model: nn.Module, name: str) -> FixedTeacher | None:
    """The checks of a teacher whose mode the caller chose: none, and a warning, where it is in train mode."""
    if not any(module.training for module in model.modules()):
        return FixedTeacher(model, name)
    warnings.warn(
        f"the {name} is in train mode, so that dropout is on and batch norm learns from its batches. Call eval() before",
        stacklevel=5,
    )
    return None


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """The strided tensors that hold the values of ``tensor``: itself, or those inside a sparse tensor or a subclass (``DTensor``).

    Tensors without memory of their own, on the meta device or not made yet, have none.
    """
    if is_lazy(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):
        inside = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        yield from (part for one in inside if isinstance(one, Tensor) for part in parts(one))
    elif tensor.is_nested:
        yield from parts(tensor.values())
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())  # noqa: SLF001  the public ones want a coalesced tensor
    elif tensor.layout in _COMPRESSED:
        yield from (getattr(tensor, name)() for name in (*_COMPRESSED[tensor.layout], "values"))
    elif tensor.layout is torch.strided and not tensor.is_meta:
        yield tensor


def _checksums(model: nn.Module) -> dict[str, list[int]]:
    """The sum of the bit patterns of each persistent buffer, by name."""
    found = {}
    for path, module in model.named_modules():
        passing = module._non_persistent_buffers_set  # noqa: SLF001  torch has no public name for it
        for name, buffer in module.named_buffers(recurse=False):
            if name not in passing:
                found[f"{path}.{name}" if path else name] = [_checksum(part) for part in parts(buffer)]
    return found


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    values = tensor.int_repr() if tensor.is_quantized else tensor
    values = torch.view_as_real(values) if values.is_complex() else values
    return int(values.view(_BITS[values.element_size()]).sum(dtype=torch.int64))
