"""Teachers: their names, outputs and combination, and checks that they stay unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.vocabulary import OUTPUT_KEYS
from kdplug.errors import ConfigError, KdplugError, OutputsError, RunError, ShapeError, SignatureError, did_you_mean
from kdplug.host import registry
from kdplug.objective.batch import Batch
from kdplug.objective.numerics import frozen, full

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig


_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_WATCHED = 3
"""Number of passes around which parameters and buffers are compared."""

_CHUNK = 1 << 24
"""Number of elements summed at a time: a CPU converts them to int64 first."""

_SHARED = "non-persistent buffer"

UPDATES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The number of updates of each teacher that a ``teacher_update`` changes."""

_IS_TRAINING = attrgetter("training")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FixedTeacher:
    """Checks the forward passes of a model that is never trained. Call ``before`` and ``after`` around each pass.

    After each pass every module must be in eval mode. The first pass, and any training up to the third pass, must leave
    parameters and persistent buffers unchanged. (The first pass may serve only to determine widths, before any
    training.) A buffer registered with ``persistent=False`` is working memory (a KV cache, a counter) and may change,
    unless it shares memory with ``student``, since each model would then read the values written by the other. Values
    are summed on their device, and only these passes wait for the result.
    """

    def __init__(self, model: nn.Module, name: str = "teacher", student: nn.Module | None = None) -> None:
        self._model = model
        self._name = name
        self._student = student
        self._shared: dict[str, Tensor] = {}
        self._modules: tuple[nn.Module, ...] = ()
        self._sums: dict[str, list[int]] = {}
        self._passes = self._updates = 0
        self.watches_values = True

    def before(self) -> None:
        """Call while ``watches_values``. Raises: ``RunError`` if a value changed since the first pass or an update."""
        if not self._passes:
            self._shared = {} if self._student is None else _shared_memory(self._model, self._student)
        updates = UPDATES.get(self._model, 0)
        if not self._passes or updates != self._updates:
            self._sums, self._updates = self._checksums(), updates
        elif changed := self._changed():
            raise RunError(
                f"the {self._name}'s {changed} changed between two forward passes: training writes to "
                "the same memory. Copy the teacher with copy.deepcopy"
            )

    def after(self) -> None:
        """Raise ``RunError`` if a module is in train mode, or the first passes changed a parameter or buffer."""
        if not self._passes:
            self._modules = tuple(self._model.modules())
        if any(map(_IS_TRAINING, self._modules)):
            raise self._in_train_mode()
        if self.watches_values:
            self._passed()

    def _passed(self) -> None:
        if not self._passes and (changed := self._changed()):
            raise RunError(
                f"a forward pass of the {self._name} changed its {changed}, so its outputs depend on earlier batches. "
                + _remedy(changed)
            )
        self._passes += 1
        self.watches_values = self._passes < _WATCHED
        if not self.watches_values:
            self._student, self._shared, self._sums = None, {}, {}

    def _changed(self) -> str:
        """Return the name of the first parameter or buffer that changed, empty if none did."""
        now = self._checksums()
        return next((name for name, sums in self._sums.items() if now.get(name, sums) != sums), "")

    def _checksums(self) -> dict[str, list[int]]:
        """Sum the bit patterns of the values that must not change, by kind and name. Skip tensors without memory.

        Also skip parameters in a wrapper (``DTensor``): FSDP replaces them during a pass.
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
        more = len(found) - 1
        number = "is" if not more else f"and {more} more module{'' if more == 1 else 's'} are"
        return RunError(
            f"after a forward pass of the {self._name}, {where} {number} in train mode, so dropout is active and batch norm "
            "updates its statistics. A run puts its teachers in eval mode; remove the call to train(), perhaps in the "
            "model's forward"
        )


def checked(model: nn.Module, name: str, student: nn.Module) -> FixedTeacher | None:
    """Return the checks of a teacher whose mode the caller chose; warn and return ``None`` if it is in train mode."""
    if not any(module.training for module in model.modules()):
        return FixedTeacher(model, name, student)
    warnings.warn(
        f"the {name} is in train mode, so dropout is active and batch norm updates its statistics. Call teacher.eval() "
        "first",
        stacklevel=5,
    )
    return None


def parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the strided tensors behind ``tensor``: itself, or those inside a sparse tensor or a subclass (``DTensor``).

    Tensors without memory, on the meta device or not materialized yet, have none.
    """
    if is_lazy(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):
        inside = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        yield from (part for one in inside if isinstance(one, Tensor) for part in parts(one))
    elif tensor.is_nested:
        yield from parts(tensor.values())
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())  # noqa: SLF001  the public methods require a coalesced tensor
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
    """Return the non-persistent buffers of ``model`` that share memory with ``student``.

    Only current tensors count: a buffer that is replaced later, such as a growing cache, is no longer shared.
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
        return "A teacher is never trained: remove the code in forward that writes to its parameters"
    if changed.startswith(_SHARED):
        return "The student shares this memory: give each model its own (copy.deepcopy)"
    return (
        "Make batch norm use its running statistics; register working memory (a KV cache, a counter) "
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


Names = tuple[str, ...]

STUDENT_KEY = "student"
"""Not a valid key of a teacher: it means the student."""

STUDENT = -1
"""The place of the student where a term names it as its teacher."""

_KEYS = frozenset(OUTPUT_KEYS)


def teacher_names(teachers: int | Sequence[str]) -> Names:
    """Return the teachers' keys; if only their number is given, ``"0"``, ``"1"``…

    Raises: ``ConfigError`` unless there is at least one, and the keys are unique strings.
    """
    if isinstance(teachers, int) and not isinstance(teachers, bool) and teachers > 0:
        return tuple(map(str, range(teachers)))
    if isinstance(teachers, (int, str)) or not teachers or not all(isinstance(key, str) and key for key in teachers):
        raise ConfigError(f"must be a number above 0 or a list of keys, got {teachers!r}", field="teachers")
    if STUDENT_KEY in teachers:
        raise ConfigError(f"{STUDENT_KEY!r} cannot be the key of a teacher. Choose another key", field="teachers")
    if len(set(teachers)) < len(teachers):
        raise ConfigError(f"each teacher needs a unique key, got {list(teachers)}", field="teachers")
    return tuple(teachers)


def place_of(teacher: int | str | None, names: Names) -> int:
    """Return the index of the teacher that a match reads: by index, by key, or ``None`` if there is only one.

    It is ``STUDENT`` for the student.

    Raises: ``ConfigError`` if it is none of the teachers, or ambiguous.
    """
    if teacher is None:
        if len(names) > 1:
            raise ConfigError(
                f"must name one of the {len(names)} teachers ({_listed(names)}), since a match reads only one",
                field="teacher",
            )
        return 0
    if teacher == STUDENT_KEY:
        return STUDENT
    if isinstance(teacher, int):
        if teacher < len(names):
            return teacher
        raise ConfigError(f"there is no teacher {teacher}. {_there(names)}", field="teacher")
    if teacher not in names:
        raise ConfigError(
            f"there is no teacher {teacher!r}.{did_you_mean(teacher, names)} {_there(names)}", field="teacher"
        )
    return names.index(teacher)


def side(names: Names, place: int) -> str:
    """Name a teacher in messages: ``teacher`` if it is the only one, otherwise ``teacher 'key'``; or the student."""
    if place == STUDENT:
        return STUDENT_KEY
    return "teacher" if len(names) == 1 else f"teacher {_shown(names[place])}"


_AS_LISTED = "Pass the outputs of each teacher, as a list in this order or a mapping with these keys"


def read_teachers(value: object, names: Names) -> tuple[Outputs, ...]:
    """Return each teacher's outputs, in the order of ``names``.

    The outputs of one teacher are given directly; those of several are a list in that order, or a mapping by key.

    Raises: ``OutputsError`` if their number or keys differ.
    """
    if len(names) == 1 and type(value) is dict and value.keys() <= _KEYS:
        return (Outputs.read(value, "teacher"),)
    if value is None:
        return (Outputs(),) * len(names)
    several = _several(value)
    if several is None:
        if len(names) > 1:
            raise OutputsError(f"got the outputs of one teacher. {_there(names)}. {_AS_LISTED}", field="teacher")
        return (Outputs.read(value, "teacher"),)
    if isinstance(several, Mapping):
        several = _in_order(several, names)
    if len(several) != len(names):
        raise OutputsError(f"got the outputs of {len(several)}. {_there(names)}. {_AS_LISTED}", field="teacher")
    return tuple(Outputs.read(one, side(names, place)) for place, one in enumerate(several))


def _several(value: object) -> Collection[object] | None:
    """Return ``value`` if it holds several teachers' outputs rather than tensors, which are the outputs of one."""
    if isinstance(value, Mapping):
        items: Collection[object] = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        return None
    found = bool(items) and all(isinstance(one, (Mapping, Outputs)) for one in items)
    return value if found else None


def _in_order(several: Mapping[object, object], names: Names) -> list[object]:
    by_name = {str(key): one for key, one in several.items()}
    if by_name.keys() != set(names):
        raise OutputsError(f"got the outputs of {', '.join(by_name)}. {_there(names)}. {_AS_LISTED}", field="teacher")
    return [by_name[name] for name in names]


def _there(names: Names) -> str:
    return f"There {'is' if len(names) == 1 else 'are'} {len(names)}: {_listed(names)}"


def _listed(names: Names) -> str:
    return ", ".join(map(_shown, names))


def _shown(name: str) -> str:
    return name if name.isdecimal() else repr(name)


class Combiner(nn.Module):
    """Calls the configured teacher combiner. It is part of the teacher side: nothing in it is trained."""

    def __init__(self, config: DistillationConfig, names: Names, temperature: float) -> None:
        super().__init__()
        try:
            component = registry.teacher_combiners.build(config.teacher_combiner)
        except KdplugError as error:
            raise error.at("teacher_combiner") from error.__cause__
        self.combine: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.names = names
        self.temperature = temperature
        self.wants_temperature = "temperature" in self.inputs
        self.wants_labels = "labels" in self.inputs
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(
        self,
        teachers: Sequence[Tensor],
        student: Tensor,
        labels: Tensor | None,
        batch: Batch,
        temperature: Tensor | float | None = None,
    ) -> Tensor:
        """Combine the logits of one head. ``temperature`` is that of the loss, if it is not the configured one.

        Shapes: logits ``[*items, classes]`` each, labels ``[*items]``; the result has the shape of the logits.
        Raises: ``ShapeError`` if a teacher's differ from the student's; ``SignatureError`` for an invalid return value
        of the combiner.
        """
        for place, logits in enumerate(teachers):
            if logits.shape != student.shape:
                raise ShapeError(
                    f"the student's {list(student.shape)} and those of {side(self.names, place)} {list(logits.shape)} "
                    "must have the same shape, with classes last",
                    field="logits",
                )
        values = {
            "teacher_logits_list": tuple([full(frozen(logits)) for logits in teachers]),
            "student_logits": full(student.detach()),
            "labels": labels,
            "temperature": self.temperature if temperature is None else temperature,
            "progress": batch.progress,
            "step": batch.step,
            "total_steps": batch.total_steps,
        }
        device = student.device.type
        with torch.autocast(device, enabled=False) if batch.autocast(student) else nullcontext():
            try:
                combined = self.combine(*map(values.__getitem__, self.inputs))
            except KdplugError as error:
                raise error.at("teacher_combiner") from error.__cause__
        return self._checked(combined, student.shape)

    def _checked(self, combined: Any, shape: torch.Size) -> Tensor:
        if isinstance(combined, Tensor) and combined.shape == shape:
            return combined
        found = list(combined.shape) if isinstance(combined, Tensor) else type(combined).__name__
        raise SignatureError(f"{self.owner} must return logits {list(shape)}, got {found}", field="teacher_combiner")
