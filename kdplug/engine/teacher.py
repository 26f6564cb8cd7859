"""The frozen teacher side of a run: one teacher, several, or none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdplug.contracts.outputs import Outputs
from kdplug.engine.training_module import Adaptor, captured, owned
from kdplug.errors import OutputsError, RunError
from kdplug.objective.capture.hooks import Capture
from kdplug.objective.teacher import FixedTeacher, parts

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


Named = Iterable[tuple[str, Tensor]]
Span = tuple[int, int, str]
"""The address of a tensor's first byte, the address after its last byte, and the tensor's name."""


def check_apart(teacher: nn.Module, student: nn.Module, objective: nn.Module) -> None:
    """Check that nothing that is trained shares memory with a teacher, also through views and other parameter objects.

    Student and objective train their parameters that require a gradient, and the running statistics of their batch
    norms. Sharing a base model is allowed if its parameters are frozen. Modules that are the teacher's own objects stay
    in eval mode, so their statistics are not trained either.

    Raises: ``RunError`` that names the shared tensors.
    """
    theirs = [*teacher.named_parameters(), *teacher.named_buffers()]
    own = frozenset(teacher.modules())
    for owner, trained in (("student", student), ("objective", objective)):
        asking = [(name, value) for name, value in trained.named_parameters() if value.requires_grad]
        if shared := overlaps(asking, theirs):
            other = next(iter(shared.values()))
            raise RunError(
                f"the teacher and the {owner} share trainable parameters ({_some(shared)}): training the {owner} "
                f"would change the teacher's {other!r}. Copy the shared modules (copy.deepcopy), or set "
                "requires_grad=False on the shared parameters"
            )
        if shared := overlaps(_statistics(trained, own), theirs):
            other = next(iter(shared.values()))
            raise RunError(
                f"the teacher and the {owner} share buffers that batch norm updates in training ({_some(shared)}): "
                f"training the {owner} would change the teacher's {other!r}. Copy the batch norm "
                "(copy.deepcopy), or share the batch norm module instead of its buffers"
            )


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first!r} and {len(rest)} more" if rest else repr(first)


def overlaps(ours: Named, theirs: Named) -> dict[str, str]:
    """Map each name in ``ours`` whose tensor shares memory with one in ``theirs`` to the name of that one."""
    spans: dict[torch.device, list[Span]] = {}
    held: dict[int, str] = {}
    for name, tensor in theirs:
        held[id(tensor)] = name
        for device, span in _spans(name, tensor):
            spans.setdefault(device, []).append(span)
    sides = {device: _Side(found) for device, found in spans.items()}
    shared = {}
    for name, tensor in ours:
        other = held.get(id(tensor)) or next(
            (found for device, span in _spans(name, tensor) if device in sides and (found := sides[device].at(span))),
            None,
        )
        if other is not None:
            shared[name] = other
    return shared


class _Side:
    """Sorted spans; for each, the span with the largest end so far, so that one bisection finds an overlap."""

    def __init__(self, spans: list[Span]) -> None:
        spans.sort()
        self._starts = [start for start, _, _ in spans]
        self._furthest: list[Span] = list(accumulate(spans, _further))

    def at(self, span: Span) -> str | None:
        """Return the name of a tensor that overlaps ``span``, or ``None``."""
        place = bisect_left(self._starts, span[1])
        if not place:
            return None
        _, end, name = self._furthest[place - 1]
        return name if end > span[0] else None


def _further(one: Span, other: Span) -> Span:
    return other if other[1] > one[1] else one


def _spans(name: str, tensor: Tensor) -> Iterator[tuple[torch.device, Span]]:
    for part in parts(tensor):
        if part.numel():
            start = part.data_ptr()
            reach = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True)) + 1
            yield part.device, (start, start + reach * part.element_size(), name)


def _statistics(model: nn.Module, spared: frozenset[nn.Module]) -> Named:
    for path, module in model.named_modules():
        if isinstance(module, _NormBase) and module not in spared:
            yield from module.named_buffers(prefix=path, recurse=False)


class TeacherSide(Protocol):
    """One teacher, or several that run together. ``model`` contains all of their modules."""

    model: nn.Module

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> Any: ...

    def to(self, device: torch.device) -> None: ...

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]: ...

    def hooked(self, objective: Any) -> AbstractContextManager[None]: ...


class Teacher:
    """A model that is run under ``no_grad``, and its adaptor.

    It does not use inference mode: nearly every loss saves the teacher's tensors for its backward pass, which autograd
    does not support for inference tensors, and copying them would cost more than the mode saves.

    Inside ``frozen()``, each pass is checked to leave the model in eval mode, and the first passes to leave its
    parameters and buffers unchanged. Messages refer to the teacher by ``name``.
    """

    def __init__(self, model: nn.Module, adaptor: Adaptor | None = None, name: str = "teacher") -> None:
        self.model = model
        self.adaptor = adaptor
        self.name = name
        self.capture: Capture | None = None
        self.is_updated = False
        """Set if the run changes the model, so that outputs stored earlier would be wrong."""
        self._fixed: FixedTeacher | None = None

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
        adaptor: Adaptor | None = None,
    ) -> Any:
        """Return the teacher's outputs for the objective. ``cache``, if given, replaces the outputs of the model.

        ``adaptor``, if given, replaces the teacher's adaptor for this batch.

        Raises: ``RunError`` if the model is in train mode or changes its parameters or buffers.
        """
        adaptor = adaptor or self.adaptor
        if precision is None and cache is None:
            with torch.set_grad_enabled(False):  # like no_grad, which is slower to construct
                return self._asked(batch, model_args, adaptor)
        with torch.no_grad(), precision or nullcontext():
            if cache is None:
                return self._asked(batch, model_args, adaptor)
            if self.is_updated:
                raise RunError(
                    "the batch has a key 'teacher_cache', but teacher_update changes the teacher in each step, so stored outputs "
                    "are not its own. Remove the key, or teacher_update"
                )
            return cache if adaptor is None else owned(adaptor(batch, cache))

    def _asked(self, batch: Any, model_args: Mapping[str, Any], adaptor: Adaptor | None) -> Any:
        fixed = self._fixed
        if fixed is None:
            return captured(self.capture, self.model, adaptor, batch, model_args)
        if fixed.watches_values:
            fixed.before()
        outputs = captured(self.capture, self.model, adaptor, batch, model_args)
        fixed.after()
        return outputs

    def to(self, device: torch.device) -> None:
        """Move the model, unless it was dispatched over several devices when it was loaded."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Inside the block, capture the modules that the objective's matches name whenever the teacher runs."""
        objective.connect(teacher=self.model)
        with self.capturing(objective.paths("teacher")):
            yield

    @contextmanager
    def capturing(self, paths: Iterable[str]) -> Iterator[None]:
        """Inside the block, capture the outputs at ``paths`` whenever the teacher runs."""
        self.capture = Capture(self.model, paths, "teacher")
        try:
            with self.capture.hooked():
                yield
        finally:
            self.capture = None

    @contextmanager
    def frozen(self, student: nn.Module | None = None) -> Iterator[None]:
        """Freeze the teacher's parameters within the block, and check its passes.

        Memory shared with ``student`` must not be written to at all.
        """
        before, self._fixed = self._fixed, FixedTeacher(self.model, self.name, student)
        trainable = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        for name in trainable:
            self.model.get_parameter(name).requires_grad_(False)
        try:
            yield
        finally:
            self._fixed = before
            for name in trainable:  # by name: sharding replaces the parameters
                self.model.get_parameter(name).requires_grad_(True)


class AbsentModel(nn.Module):
    """Placeholder for the model of a missing teacher: it has no parameters and is never called."""


class CacheOnlyTeacher:
    """Placeholder for a teacher known only from its cache.

    Its adaptor is known: the cache holds the outputs of that adaptor.
    """

    def __init__(self, adaptor: Adaptor | None = None) -> None:
        self.model: nn.Module = AbsentModel()
        self.adaptor = adaptor

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Always raise ``RunError``."""
        raise RunError("there is no teacher to run, and no cache holds its outputs for this batch. Pass model_T")

    def to(self, device: torch.device) -> None:
        pass

    def frozen(self, student: nn.Module | None = None) -> AbstractContextManager[None]:  # noqa: ARG002  a teacher's
        return nullcontext()

    def hooked(self, objective: Any) -> AbstractContextManager[None]:  # noqa: ARG002  a teacher's
        return nullcontext()


class Ensemble:
    """Several teachers by key. Each gets the same batch and has its own adaptor; outputs are not combined here."""

    def __init__(self, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        self.model: nn.Module = nn.ModuleList(teacher.model for teacher in self.teachers.values())

    def __call__(
        self,
        batch: Any,
        model_args: Mapping[str, Any],
        cache: Any = None,
        precision: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Outputs]:
        """Return the outputs of each teacher for the objective, by key.

        Raises: ``OutputsError`` for outputs that cannot be read, or a ``cache`` that does not have one entry per
        teacher.
        """
        caches = self._caches(cache)
        with torch.no_grad(), precision or nullcontext():
            return {
                key: Outputs.read(teacher(batch, model_args, caches[key]), f"teacher.{key}")
                for key, teacher in self.teachers.items()
            }

    def to(self, device: torch.device) -> None:
        for teacher in self.teachers.values():
            teacher.to(device)

    @contextmanager
    def frozen(self, student: nn.Module | None = None) -> Iterator[None]:
        with ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.frozen(student))
            yield

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Inside the block, capture the modules that the objective's matches name whenever the teachers run."""
        objective.connect(teacher={key: teacher.model for key, teacher in self.teachers.items()})
        with ExitStack() as stack:
            for place, teacher in enumerate(self.teachers.values()):
                stack.enter_context(teacher.capturing(objective.paths("teacher", place)))
            yield

    def _caches(self, cache: Any) -> dict[str, Any]:
        if cache is None:
            return dict.fromkeys(self.teachers)
        if isinstance(cache, Mapping) and cache.keys() == self.teachers.keys():
            return dict(cache)
        if isinstance(cache, (list, tuple)) and len(cache) == len(self.teachers):
            return dict(zip(self.teachers, cache, strict=True))
        raise OutputsError(
            f"must have one entry for each of the {len(self.teachers)} teachers, as a list or by key "
            f"({', '.join(self.teachers)}), got {type(cache).__name__}",
            field="teacher_cache",
        )
