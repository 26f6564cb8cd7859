"""Reading tensors inside a model by forward hooks, while a match needs them and no longer."""

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
    """What one call of a module gave: the tensor, how often it had been written to, and whether gradient was on."""

    tensor: Tensor
    version: int | None
    has_grad: bool


class Capture:
    """Reads the tensors that ``paths`` name, one forward pass of ``model`` at a time.

    ``hooked()`` puts the hooks in place for the length of a block; ``reading()`` goes around one forward pass;
    ``join(outputs)`` adds to the model's outputs what that pass gave. Nothing is read outside of ``reading()``, so the second
    forward pass that gradient checkpointing makes during the backward pass leaves no trace, nor does an evaluation.

    ``fixed`` checks each pass that is read, where the model is a teacher that nobody else checks.

    Raises: ``ConfigError`` for a path that leads nowhere in the model.
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
        """Hooks on the modules inside the block; none of them afterwards, whatever happened."""
        handles = []
        try:
            for module, points in self._points.items():
                handles.append(module.register_forward_hook(self._hook(module, points), with_kwargs=True))
            if handles and _is_compiled(self.model):
                torch.compiler.reset()  # code compiled before knows of no hooks, and would not be asked again
            self._is_hooked = True
            yield self
        finally:
            self._is_hooked = False
            self._calls = {}
            for handle in handles:
                handle.remove()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read what is computed inside the block: one forward pass. What an earlier one gave is forgotten.

        Raises: ``RunError`` where no hooks are in place, or the pass changed what may not change in a teacher.
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
                f"the {self.side}'s modules have no hooks: read inside hooked(), or inside objective.capture(…)"
            )
        self._calls = {text: [] for text in self.paths}
        self._had_grad = torch.is_grad_enabled()
        self._is_reading = True

    def join(self, outputs: object) -> Outputs:
        """``outputs``, in any form that an objective takes, with what the last forward pass gave at each path.

        A module that was not called has no part in it. What was read is then forgotten.

        Raises: ``OutputsError`` where a module was called more than once; ``RunError`` where what it gave was
        overwritten since, or carries no gradient though the student's forward pass does.
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
                f"{text!r} was called {len(found)} times in the forward pass. Write which call: {choices}…"
            )
        try:
            call = found[0 if index is None else index]
        except IndexError:
            raise OutputsError(f"{text!r}: the module was called {len(found)} times in the forward pass") from None
        self._check(text, call)
        return call.tensor

    def _check(self, text: str, call: _Call) -> None:
        if call.version is not None and call.version != call.tensor._version:  # noqa: SLF001  torch's name for it
            raise RunError(
                f"{text!r} was overwritten after it was read: an operation in place, such as ReLU(inplace=True), follows the "
                "module. Read the module after it, or turn inplace off"
            )
        if self.side == "student" and self._had_grad and not call.has_grad:
            raise RunError(
                f"{text!r} was computed without gradient, so its match would train nothing. Under gradient checkpointing use "
                "use_reentrant=False; otherwise look for a torch.no_grad() around the module"
            )


@dataclass(frozen=True, slots=True)
class Captures:
    """What reads the student, and what reads each teacher."""

    student: Capture
    teachers: tuple[Capture, ...]

    @property
    def teacher(self) -> Capture:
        """What reads the teacher, or the first of several."""
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
