"""Capture tensors inside a model with forward hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdplug.config.layer import LayerPath, read_path
from kdplug.contracts.outputs import Outputs
from kdplug.errors import KdplugError, OutputsError, RunError
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.capture.value import pick
from kdplug.objective.teacher import FixedTeacher

_HOOK = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a module: its tensor, the tensor's version, and whether gradient was on."""

    tensor: Tensor
    version: int | None
    has_grad: bool


class Capture:
    """Reads the tensors that ``paths`` name, one forward pass of ``model`` at a time.

    ``hooked()`` attaches the hooks inside a block; ``reading()`` wraps one forward pass;
    ``join(outputs)`` adds that pass's tensors to the model's outputs. Nothing is read outside ``reading()``, so
    evaluation and the second forward pass of gradient checkpointing are not captured.

    ``fixed`` checks each pass that is read, if the model is a teacher that is not checked elsewhere.

    Raises: ``ConfigError`` for a path that does not exist in the model.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], side: Side, fixed: FixedTeacher | None = None) -> None:
        self.side: Side = side
        self.model = model
        self._fixed = fixed
        self._points: dict[nn.Module, dict[str, LayerPath]] = {}
        self.paths = tuple(dict.fromkeys(paths))
        self._which = {text: read_path(text).call for text in self.paths}
        modules = Modules(model, side) if self.paths else None
        for text in self.paths:
            assert modules is not None
            name = modules.expand(text, listed=False)
            path = read_path(str(name))
            self._points.setdefault(modules[path.modules], {})[text] = path
        self._calls: dict[str, list[_Call]] = {}
        self._is_hooked = self._is_reading = self._had_grad = False

    @contextmanager
    def hooked(self) -> Iterator[Self]:
        """Attach hooks inside the block; always remove them afterwards."""
        handles = []
        try:
            for module, points in self._points.items():
                handles.append(module.register_forward_hook(self._hook(module, points), with_kwargs=True))
            if handles and _is_compiled(self.model):
                torch.compiler.reset()  # code compiled earlier has no hooks
            self._is_hooked = True
            yield self
        finally:
            self._is_hooked = False
            self._calls = {}
            for handle in handles:
                handle.remove()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read tensors during one forward pass inside the block. Tensors of an earlier pass are dropped.

        Raises: ``RunError`` if no hooks are attached, or the pass changed the state of a teacher.
        """
        if self._fixed is not None and self._fixed.watches_values:
            self._fixed.before()
        if self.paths:
            self._begin()
        try:
            yield
        except BaseException as error:
            self._calls = {}
            if self.paths and isinstance(error, OutputsError) and not error.field:
                error.at(self.side)
            raise
        finally:
            self._is_reading = False
        if self._fixed is not None:
            self._fixed.after()

    def _begin(self) -> None:
        if not self._is_hooked:
            raise RunError(
                f"the {self.side}'s modules have no hooks: call reading() inside hooked() or objective.capture(…)"
            )
        self._calls = {text: [] for text in self.paths}
        self._had_grad = torch.is_grad_enabled()
        self._is_reading = True

    def join(self, outputs: object) -> Outputs:
        """Return ``outputs``, in any form that an objective accepts, with the tensors captured in the last forward pass.

        Modules that were not called are omitted. Afterwards the captured tensors are dropped.

        Raises: ``OutputsError`` if a module was called more than once; ``RunError`` if its tensor was overwritten after
        that, or carries no gradient although the student's forward pass does.
        """
        read = Outputs.read(outputs, self.side)
        if not self.paths:
            return read
        calls, self._calls = self._calls, {}
        try:
            captured = {text: self._tensor(text, found) for text, found in calls.items() if found}
        except KdplugError as error:
            raise error.at(self.side) from None
        return replace(read, captured=captured)

    def _hook(self, module: nn.Module, points: Mapping[str, LayerPath]) -> _HOOK:
        names = _parameters(module)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            if self._is_reading:
                for text, path in points.items():
                    self._calls[text].append(_call(pick(path, names, args, kwargs, output)))

        return hook

    def _tensor(self, text: str, found: list[_Call]) -> Tensor:
        index = self._which[text]
        if index is None and len(found) > 1:
            choices = ", ".join(_with_call(text, place) for place in range(min(len(found), 3)))
            raise OutputsError(
                f"{text!r} was called {len(found)} times in the forward pass. Specify which call: {choices}…"
            )
        try:
            call = found[0 if index is None else index]
        except IndexError:
            times = "once" if len(found) == 1 else f"{len(found)} times"
            last = _with_call(text, len(found) - 1)
            raise OutputsError(
                f"{text!r}: the module was called only {times} in the forward pass. The last call is {last}"
            ) from None
        self._check(text, call)
        return call.tensor

    def _check(self, text: str, call: _Call) -> None:
        if call.version is not None and call.version != call.tensor._version:  # noqa: SLF001  no public name exists
            raise RunError(
                f"{text!r} was overwritten after it was read: an in-place operation, such as ReLU(inplace=True), "
                "follows the module. Capture the next module instead, or set inplace=False"
            )
        if self.side == "student" and self._had_grad and not call.has_grad:
            raise RunError(
                f"{text!r} was computed without gradient, so its match would not train the student. Under gradient "
                "checkpointing use use_reentrant=False; otherwise look for a torch.no_grad() around the module"
            )


@dataclass(frozen=True, slots=True)
class Captures:
    """The captures of the student and of each teacher."""

    student: Capture
    teachers: tuple[Capture, ...]

    @property
    def teacher(self) -> Capture:
        """The capture of the teacher, or of the first of several."""
        return self.teachers[0]


def _call(tensor: Tensor) -> _Call:
    eager = not torch.compiler.is_compiling() and not tensor.is_inference()
    return _Call(tensor, tensor._version if eager else None, torch.is_grad_enabled())  # noqa: SLF001


def _with_call(text: str, index: int) -> str:
    return repr(str(replace(read_path(text), call=index)))


def _parameters(module: nn.Module) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return ()


def _is_compiled(model: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
