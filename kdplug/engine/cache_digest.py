"""Data as a number: equal data give equal numbers, and other data practically never the same."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy
import torch
from torch import Tensor

from kdplug.errors import RunError

_Update = Callable[[Any], None]
_DEPTH = 12
_SCALARS = (str, int, float, complex, bool, type(None))


def digest(value: object) -> int:
    """A signed number of 64 bits for ``value``: tensors, arrays, plain data, containers of these, and what can be pickled.

    Raises: ``RunError`` for anything else.
    """
    found = hashlib.blake2b(digest_size=8)
    _feed(found.update, value)
    return int.from_bytes(found.digest(), "little", signed=True)


def text_digest(value: object) -> str:
    """``digest`` for a JSON file, as 16 hexadecimal digits."""
    return f"{digest(value) & (1 << 64) - 1:016x}"


def code_digest(function: object) -> str:
    """A digest of what a callable does: its bytecode, constants, defaults and what it closes over; of an object, its state too.

    Functions that it calls by a global name are not followed.
    """
    return text_digest(_code(function, 0))


def _feed(update: _Update, value: object) -> None:
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
    if all(type(part) in _SCALARS for part in parts):  # token ids: many, and at every step
        update(repr(parts).encode())
        return
    for part in parts:
        _feed(update, part)


def _feed_pickled(update: _Update, value: object) -> None:
    try:
        update(pickle.dumps(value, protocol=5))
    except Exception as error:
        raise RunError(
            f"a {type(value).__name__} cannot be told from another: {type(error).__name__}: {error}. A teacher cache needs "
            "examples made of tensors, arrays and plain data"
        ) from error


def _code(value: object, depth: int) -> Any:
    """``value`` as plain data that changes with what it does."""
    inner = depth + 1
    if depth > _DEPTH:
        return "…"
    if isinstance(value, (*_SCALARS, bytes, Tensor, numpy.ndarray)):
        return value
    if isinstance(value, Mapping):
        return [[_code(key, inner), _code(one, inner)] for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_code(one, inner) for one in value]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, _code(value.co_consts, inner)]
    return _callable_code(value, inner)


def _callable_code(value: Any, depth: int) -> Any:
    """A function: what it does and holds. An object: what a call of it does, and its state. Others: the name."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, partial):
        return ["partial", _code([value.func, value.args, value.keywords], depth)]
    if isinstance(value, MethodType):
        return [name, _code([value.__func__, value.__self__], depth)]
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)]
        return [name, _code([value.__code__, value.__defaults__, value.__kwdefaults__, closed], depth)]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return name
    does = vars(type(value)).get("__call__")
    return [name, _code(does, depth) if isinstance(does, FunctionType) else None, _code(dict(vars(value)), depth)]


def _is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
