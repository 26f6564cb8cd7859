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
"""Passes around which parameters and buffers are read."""

_CHUNK = 1 << 24
"""Elements that are summed at a time: a CPU converts them to int64 first."""

_SHARED = "non-persistent buffer"

_IS_TRAINING = attrgetter("training")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FixedTeacher:
    """Checks the forward passes of a model that is read and never trained; ``before`` and ``after`` go around each.

    After each pass every module must be in eval mode. The first pass, and what is trained until the third, must leave parameters
    and persistent buffers as they were (the first pass may serve to find widths, before anything is trained). A buffer
    registered with ``persistent=False`` is memory that the model works with (a KV cache, a counter) and may change, unless it
    lies in memory of ``student``, where each of the two would see what the other writes. Values are summed up on their device,
    and waited for in these passes alone.
    """

    def __init__(self, model: nn.Module, name: str = "teacher", student: nn.Module | None = None) -> None:
        self._model = model
        self._name = name
        self._student = student
        self._shared: dict[str, Tensor] = {}
        self._modules: tuple[nn.Module, ...] = ()
        self._sums: dict[str, list[int]] = {}
        self._passes = 0
        self.watches_values = True

    def before(self) -> None:
        """Needed while it ``watches_values``. Raises: ``RunError`` where one changed since the first pass."""
        if not self._passes:
            self._shared = {} if self._student is None else _shared_memory(self._model, self._student)
            self._sums = self._checksums()
        elif changed := self._changed():
            raise RunError(
                f"the {self._name}'s {changed} changed between two forward passes: something that is trained writes to "
                "the same memory. Copy the teacher (copy.deepcopy)"
            )

    def after(self) -> None:
        """Raises: ``RunError`` where a module is in train mode, or the first passes changed a parameter or buffer."""
        if not self._passes:
            self._modules = tuple(self._model.modules())
        if any(map(_IS_TRAINING, self._modules)):
            raise self._in_train_mode()
        if self.watches_values:
            self._passed()

    def _passed(self) -> None:
        if not self._passes and (changed := self._changed()):
            raise RunError(
                f"a forward pass of the {self._name} changed its {changed}, so that its outputs depend on the batches before. "
                + _remedy(changed)
            )
        self._passes += 1
        self.watches_values = self._passes < _WATCHED
        if not self.watches_values:
            self._student, self._shared, self._sums = None, {}, {}

    def _changed(self) -> str:
        """The first parameter or buffer whose value is another than at first."""
        now = self._checksums()
        return next((name for name, sums in self._sums.items() if now.get(name, sums) != sums), "")

    def _checksums(self) -> dict[str, list[int]]:
        """The sums of the bit patterns of what may not change, by kind and name. What has no memory yet is left out.

        Parameters in a wrapper (``DTensor``) are too: FSDP puts others in their place for a pass.
        """
        found: dict[str, Tensor] = {
            f"parameter {name!r}": value
            for name, value in self._model.named_parameters()
            if not is_traceable_wrapper_subclass(value)
        }
        found |= {f"buffer {name!r}": value for name, value in _buffers(self._model, persistent=True)}
        found |= self._shared
        sums = {name: [_checksum(part) for part in parts(value)] for name, value in found.items()}
        return {name: one for name, one in sums.items() if one}

    def _in_train_mode(self) -> RunError:
        found = [(name, module) for name, module in self._model.named_modules() if module.training]
        name, module = found[0]
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        number = "is" if len(found) == 1 else f"and {len(found) - 1} more module(s) are"
        return RunError(
            f"after a forward pass of the {self._name}, {where} {number} in train mode, in which dropout is on and batch norm learns "
            "from the batch. A run puts its teachers in eval mode; remove the call of train(), from the model's forward perhaps"
        )


def checked(model: nn.Module, name: str, student: nn.Module) -> FixedTeacher | None:
    """The checks of a teacher whose mode the caller chose: none, and a warning, where it is in train mode."""
    if not any(module.training for module in model.modules()):
        return FixedTeacher(model, name, student)
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


def _buffers(model: nn.Module, *, persistent: bool) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        passing = module._non_persistent_buffers_set  # noqa: SLF001  torch has no public name for it
        for name, buffer in module.named_buffers(recurse=False):
            if (name not in passing) is persistent:
                yield f"{path}.{name}" if path else name, buffer


def _shared_memory(model: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """The buffers of ``model`` that are not persistent and lie in memory of ``student``.

    The tensors of now: one that is replaced later, as a cache that grows, is no longer shared.
    """
    used = {_storage(part) for one in (*student.parameters(), *student.buffers()) for part in parts(one)} - {0}
    return {
        f"{_SHARED} {name!r}": buffer
        for name, buffer in _buffers(model, persistent=False)
        if any(_storage(part) in used for part in parts(buffer))
    }


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _remedy(changed: str) -> str:
    if changed.startswith("parameter"):
        return "A teacher is read and never trained: remove what writes to its parameters from forward"
    if changed.startswith(_SHARED):
        return "The student reads the same memory: give each model its own (copy.deepcopy)"
    return (
        "Have batch norm use its running statistics; register memory that the model works with (a KV cache, a counter) "
        "with persistent=False"
    )


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    values = tensor.int_repr() if tensor.is_quantized else tensor
    values = torch.view_as_real(values) if values.is_complex() else values
    bits = values.detach().view(_BITS[values.element_size()])
    if not bits.numel():
        return 0
    rows = bits.unsqueeze(0) if not bits.dim() else bits
    chunks = torch.split(rows, max(1, _CHUNK * len(rows) // bits.numel()))
    return int(torch.stack([chunk.sum(dtype=torch.int64) for chunk in chunks]).sum())
