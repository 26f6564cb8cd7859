"""Select, from a module's inputs and outputs, the tensor that a path denotes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from kdplug.config.layer import LayerPath
from kdplug.contracts.tree import KeyPath, MappingKey, leaves
from kdplug.errors import OutputsError

_DEPTH = 2
_SHOWN = 5


def pick(
    path: LayerPath, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Tensor:
    """Return the tensor at ``path``. ``names`` are the module's parameter names, for inputs given by keyword.

    Raises: ``OutputsError`` if a step does not exist, or leads to something other than a tensor.
    """
    if path.source == "input":
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        value, steps = _of_inputs(path, args, kwargs, given)
    else:
        value, steps = output, path.steps
    for step in steps:
        value = _step(path, value, step)
    if isinstance(value, Tensor):
        return value
    if not path.steps and isinstance(value, (tuple, list)):
        for one in value:
            if isinstance(one, Tensor):
                return one
    raise OutputsError(_no_tensor(path, value))


def _of_inputs(
    path: LayerPath, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: dict[str, Any]
) -> tuple[Any, tuple[int | str, ...]]:
    """Return the input that the first step names, and the remaining steps."""
    if not path.steps:
        return (*args, *given.values()), ()
    first, rest = path.steps[0], path.steps[1:]
    if isinstance(first, str):
        if first in given:
            return given[first], rest
    elif -len(args) <= first < len(args):
        return args[first], rest
    elif 0 <= first < len(given):
        return tuple(given.values())[first], rest
    raise OutputsError(_no_input(path, len(args), kwargs, given))


def _step(path: LayerPath, value: Any, step: int | str) -> Any:
    try:
        if isinstance(step, int):
            return value[step]
        return value[step] if isinstance(value, Mapping) else getattr(value, step)
    except (LookupError, AttributeError, TypeError):
        raise OutputsError(_no_step(path, value, step)) from None


_NO_ATTENTION = (
    'For attention weights, load the model with attn_implementation="eager": kernels such as sdpa do not return any'
)


def _no_input(path: LayerPath, number: int, kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    message = f"{str(path)!r}: there is no such input. The module was called with"
    if not number and not kwargs:
        return f"{message}out arguments. Read its output, or another module"
    positional = f"{number} positional argument{'' if number == 1 else 's'}"
    keywords = f"the keyword argument{'' if len(kwargs) == 1 else 's'} {_listed(kwargs)}"
    called = " and ".join([*([positional] if number else []), *([keywords] if kwargs else [])])
    steps: list[int | str] = [*given] or [*range(number)]
    return f"{message} {called}. Use {' or '.join(repr(str(replace(path, steps=(step,)))) for step in steps[:_SHOWN])}"


def _no_step(path: LayerPath, value: Any, step: int | str) -> str:
    written = f"[{step}]" if isinstance(step, int) else f".{step}"
    return f"{str(path)!r}: there is no {written} in {described(value)}"


def _no_tensor(path: LayerPath, value: Any) -> str:
    steps = [inner for inner, leaf in leaves(value) if isinstance(leaf, Tensor) and _is_short(inner)]
    found = [f"{str(path).rstrip()}{_colon(path)}{''.join(map(_written, one))}" for one in steps[:_SHOWN]]
    write = f". Use {' or '.join(map(repr, found))}" if found else ""
    if value is None:
        write = f". {_NO_ATTENTION}"
    return f"{str(path)!r} gives {described(value)}, but a match needs a tensor{write}"


def _colon(path: LayerPath) -> str:
    return "" if path.steps or path.source != "output" else ":output"


def described(value: Any) -> str:
    """Describe a value in a few words: ``a tuple of 2``, ``a dict with a, b``."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {_listed(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_short(steps: KeyPath) -> bool:
    """Return whether a layer path can be written with ``steps``, and is worth proposing."""
    keys = [step.key for step in steps if isinstance(step, MappingKey)]
    return len(steps) <= _DEPTH and all(isinstance(key, str) and key.isidentifier() for key in keys)


def _written(step: Any) -> str:
    return f".{step.key}" if isinstance(step, MappingKey) else f"[{step.idx}]"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"
