"""64-bit content hashes of data and code."""

from __future__ import annotations

import dis
import hashlib
import pickle
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kdplug.errors import RunError

_Update = Callable[[Any], None]
_DEPTH = 12
_ADDRESS = re.compile(r"\b0x[0-9a-f]+")
_REPLACED = ("forward", "_old_forward", "_gradient_checkpointing_func")
"""Attributes in which accelerate, torch.compile and transformers store functions that do not change outputs."""
_SCALARS = (str, int, float, complex, bool, type(None))
_PRINTED = (torch.dtype, torch.device, numpy.generic, numpy.dtype, range, PurePath)
"""Types whose ``repr`` is their full value."""

_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}
"""Attributes that hold a module's parameters, submodules and hooks."""


def digest(value: object) -> int:
    """Return a signed 64-bit content hash of tensors, arrays, plain data, containers of these, and picklable objects.

    Raises: ``RunError`` for anything else.
    """
    found = hashlib.blake2b(digest_size=8)
    _feed(found.update, value)
    return int.from_bytes(found.digest(), "little", signed=True)


def text_digest(value: object) -> str:
    """Return ``digest`` as 16 hexadecimal digits, for a JSON file."""
    return f"{digest(value) & (1 << 64) - 1:016x}"


def code_digest(function: object, known: nn.Module | None = None, *, with_state: bool = True) -> str:
    """Return a digest of the behaviour of a callable: code, constants, defaults, closure and, for an object, its state.

    Global variables that it reads are included if they hold plain data or tensors, and functions that it calls if they
    are in its module or in no installed package. Variables that it assigns are not. Functions of installed packages and
    objects in global variables are represented by name only, and modules of the model ``known`` by path.
    ``with_state=False`` leaves out attributes of objects and weights of modules.
    """
    return text_digest(_Code(known, with_state=with_state).of(function, 0))


_INSTALLED = (Path(sysconfig.get_path("stdlib")), Path(__file__).parents[1])


def _feed(update: _Update, value: object) -> None:
    if isinstance(value, Tensor) and value.is_meta:
        raise RunError("a tensor on the meta device has no values, so it cannot be hashed. Load the weights first")
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized:
        update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, numpy.ndarray) and value.dtype != object:
        update(f"array {value.dtype.str} {value.shape};".encode())
        update(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8))
    elif isinstance(value, _SCALARS):
        update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, bytes):
        update(f"bytes {len(value)};".encode())
        update(value)
    elif isinstance(value, Mapping):
        _feed_all(update, "mapping", [part for item in value.items() for part in item])
    elif isinstance(value, (list, tuple)):
        _feed_all(update, type(value).__name__, value)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed_all(update, type(value).__name__, [getattr(value, field.name) for field in fields(value)])
    else:
        _feed_pickled(update, value)


def _feed_all(update: _Update, kind: str, parts: list[Any] | tuple[Any, ...]) -> None:
    update(f"{kind} {len(parts)};".encode())
    if all(type(part) in _SCALARS for part in parts):  # token ids: many of them, at every step
        update(repr(parts).encode())
        return
    for part in parts:
        _feed(update, part)


def _feed_pickled(update: _Update, value: object) -> None:
    try:
        update(pickle.dumps(value, protocol=5))
    except Exception as error:
        raise RunError(
            f"a {type(value).__name__} cannot be hashed: {type(error).__name__}: {error}. A teacher cache needs "
            "examples made of tensors, arrays and plain data"
        ) from error


class _Code:
    """Converts a callable to plain data that changes with its behaviour. A shared object is converted once."""

    def __init__(self, model: nn.Module | None, *, with_state: bool) -> None:
        self._with_state = with_state
        modules = () if model is None else model.named_modules()
        self._found: dict[int, tuple[int, str, object]] = {id(one): (0, f"module {path}", one) for path, one in modules}

    def of(self, value: object, depth: int) -> Any:
        """Return a plain value as it is, and a digest of any other."""
        if isinstance(value, (*_SCALARS, bytes, Tensor, numpy.ndarray)):
            return value
        if isinstance(value, _PRINTED):
            return [type(value).__name__, str(value)]
        if depth > _DEPTH:
            return "…"
        before = self._found.get(id(value))
        if before is not None and before[0] <= depth:  # a value first read at greater depth was truncated earlier
            return before[1]
        self._found[id(value)] = depth, "cycle", value  # keep a reference, so that no other object gets its id
        found = text_digest(self._parts(value, depth + 1))
        self._found[id(value)] = depth, found, value
        return found

    def _parts(self, value: Any, depth: int) -> list[Any]:
        if isinstance(value, Mapping):
            return [[self.of(key, depth), self.of(one, depth)] for key, one in value.items()]
        if isinstance(value, (list, tuple)):
            return [self.of(one, depth) for one in value]
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted(text_digest(self.of(one, depth)) for one in value)]
        if isinstance(value, CodeType):
            return [value.co_code, value.co_names, self.of(value.co_consts, depth)]
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return [name, *(self._module(value, depth) if isinstance(value, nn.Module) else self._object(value, depth))]

    def _object(self, value: Any, depth: int) -> list[Any]:
        """Describe a function by its code and what it reads, an object by its call and state, anything else by name."""
        if isinstance(value, partial):
            return [self.of(one, depth) for one in (value.func, value.args, value.keywords)]
        if isinstance(value, MethodType):
            return [self.of(value.__func__, depth), self.of(value.__self__, depth)]
        if isinstance(value, FunctionType):
            held = (value.__code__, value.__defaults__, value.__kwdefaults__, *_variables(value))
            return [self.of(one, depth) for one in held]
        if isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
            return [value.__name__] if isinstance(value, ModuleType) else []
        does = vars(type(value)).get("__call__")
        state = vars(value) if self._with_state else vars(value).get("__wrapped__")
        return [self.of(does, depth) if isinstance(does, FunctionType) else None, self.of(state, depth)]

    def _module(self, model: nn.Module, depth: int) -> list[Any]:
        """Describe a module by its weights and buffers, and every submodule by its forward and its attributes."""
        if not self._with_state:
            return [str(model)]
        found: list[Any] = [[name, one] for name, one in (*model.named_parameters(), *model.named_buffers())]
        for path, module in model.named_modules():
            does = vars(type(module)).get("forward")
            own = {key: one for key, one in vars(module).items() if key not in _OF_EVERY_MODULE}
            code = self.of(does, depth) if isinstance(does, FunctionType) else None
            found.append([path, type(module).__qualname__, code, self.of(own, depth)])
        return found


def _variables(function: FunctionType) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a function's closure, and globals that it reads but does not assign, if plain data or of its module."""
    read, written = set[str](), set[str]()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(instruction.argval)
            elif instruction.opname in ("STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"):
                written.add(instruction.argval)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: cell.cell_contents for name, cell in cells if name not in written and not _is_empty(cell)}
    known = function.__globals__
    return closed, {
        name: known[name] for name in sorted(read - written) if name in known and _is_followed(known[name], function)
    }


def _is_followed(value: object, function: FunctionType) -> bool:
    if isinstance(value, FunctionType):
        return value.__module__ == function.__module__ or _is_users(value)
    return isinstance(value, (*_SCALARS, *_PRINTED, bytes, Tensor, numpy.ndarray, dict, list, tuple, set, frozenset))


def _is_users(function: FunctionType) -> bool:
    """Return whether the file of the function belongs to no installed package, nor to the stdlib or kdplug."""
    path = Path(function.__code__.co_filename)
    is_installed = {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, _INSTALLED))
    return path.is_absolute() and not is_installed


def _is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def printed(model: nn.Module) -> list[str]:
    """Return the class of a model and its repr, with memory addresses removed."""
    return [type(model).__qualname__, _ADDRESS.sub("", repr(model))]


def held_functions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the functions that are attributes of the model's modules, such as activations, with their path."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            is_function = isinstance(value, (FunctionType, BuiltinFunctionType, partial))
            if is_function and name not in _REPLACED:
                yield f"{path}.{name}" if path else name, value
