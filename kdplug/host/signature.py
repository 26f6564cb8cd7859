"""The star rule: which parameters of a callable are inputs and which are settings.

Positional parameters of a function are inputs, keyword-only ones are settings. The ``__init__`` of a class takes
settings, its ``forward`` (or ``__call__``, or the ``update`` of a balancer) takes inputs. A projection class takes
``in_dim, out_dim`` by position in ``__init__``.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kdplug.contracts.vocabulary import ALIASES
from kdplug.errors import SignatureError, did_you_mean

if TYPE_CHECKING:
    from kdplug.host.kind import EntryInfo

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

_TAKEN = ("name",)
_TAKEN_BY_PROJECTIONS = ("in_dim", "out_dim", "options")


@dataclass(frozen=True, slots=True)
class Setting:
    """Annotation of a setting (``Any`` if missing) and its default (``Parameter.empty`` if missing)."""

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and settings of a callable. ``makes`` is true for a class or factory, which builds the object to use.

    ``widths`` are the parameters of a class's ``__init__`` that get numbers of the run: for a loss the widths of the
    features or the number of examples, for a balancer what it needs of the terms.
    """

    inputs: tuple[str, ...]
    settings: Mapping[str, Setting]
    makes: bool
    widths: tuple[str, ...] = ()


def read_signature(entry: EntryInfo, target: Callable[..., Any]) -> Signature:
    """Read the inputs and settings of ``target``.

    Raises: ``SignatureError`` for an input that the engine does not provide, for ``*args`` or ``**kwargs``, and for a
    setting whose name is that of an input or is reserved in configs.
    """
    if inspect.isclass(target):
        init = _init_of(target)
        parameters = _parameters(entry, init, skip_self=True) if init is not None else []
        if entry.kind.plural == "projections":
            inputs = _positional(parameters)
            settings = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
        else:
            inputs = _forward_inputs(entry, target)
            widths = _widths(entry, parameters)
            settings = [parameter for parameter in parameters if parameter.name not in widths]
            return replace(_checked(entry, inputs, settings, init, makes=True), widths=widths)
        return _checked(entry, inputs, settings, init, makes=False)
    parameters = _parameters(entry, target, skip_self=False)
    settings = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
    if entry.kind.is_object:
        return _checked(entry, [], parameters, target, makes=True)
    if entry.kind.method != "forward":
        raise SignatureError(
            f"{entry.name} ({entry.dist}) is a function, but a {entry.kind.noun} is a class with "
            f"{_a(entry.kind.method)} method: it holds state. Write a class"
        )
    return _checked(entry, _positional(parameters), settings, target, makes=False)


def _widths(entry: EntryInfo, parameters: list[Parameter]) -> tuple[str, ...]:
    """Return the parameters of ``__init__`` that get numbers of the run: positional, without a default."""
    return tuple(
        parameter.name
        for parameter in _positional(parameters)
        if parameter.name in entry.kind.built_with and parameter.default is Parameter.empty
    )


def _init_of(cls: type) -> Callable[..., Any] | None:
    """Return the author's ``__init__``, or ``None`` if it is inherited from ``object`` or ``torch.nn.Module``."""
    for owner in cls.__mro__:
        if "__init__" in vars(owner):
            inherited = owner is object or owner.__module__.startswith("torch.nn.modules.module")
            return None if inherited else vars(owner)["__init__"]
    return None


def _forward_inputs(entry: EntryInfo, cls: type) -> list[Parameter]:
    if entry.kind.is_object:
        return []
    method = entry.kind.method
    found_method = getattr(cls, method, None) or (vars(cls).get("__call__") if method == "forward" else None)
    if found_method is None:
        raise SignatureError(
            f"{entry.name} ({entry.dist}) is a class without {_a(method)} method. Define {method} with the inputs as parameters"
        )
    found = _parameters(entry, found_method, skip_self=True)
    inputs = _positional(found)
    if len(found) > len(inputs):
        raise SignatureError(
            f"{entry.name} ({entry.dist}) has a keyword-only parameter {found[len(inputs)].name!r} in its {method} method. "
            "Move this setting to __init__"
        )
    return inputs


def _a(method: str) -> str:
    return f"{'an' if method[0] in 'aeiou' else 'a'} {method}"


def _parameters(entry: EntryInfo, function: Callable[..., Any], *, skip_self: bool) -> list[Parameter]:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        if entry.positional:
            return []
        raise SignatureError(
            f"cannot read the signature of {entry.name} ({entry.dist}): {error}. Wrap it in a Python function that names its "
            "inputs, then its settings after a '*'"
        ) from error
    found = found[1:] if skip_self else found
    if entry.positional:
        return [p for p in found if p.kind is Parameter.KEYWORD_ONLY]
    variadic = [
        f"*{p.name}" if p.kind is Parameter.VAR_POSITIONAL else f"**{p.name}" for p in found if p.kind in _VARIADIC
    ]
    if variadic:
        raise SignatureError(
            f"{entry.name} ({entry.dist}) takes {' and '.join(variadic)}, which hides its inputs and settings. "
            "Name the inputs, then the settings after a '*'"
        )
    return found


def _positional(parameters: list[Parameter]) -> list[Parameter]:
    return [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]


def _checked(
    entry: EntryInfo,
    inputs: list[Parameter],
    settings: list[Parameter],
    function: Callable[..., Any] | None,
    *,
    makes: bool,
) -> Signature:
    in_class = makes and not entry.kind.is_object
    to_get_it = f"request it in {entry.kind.method}" if in_class else "make it a positional parameter"
    to_set_it = "move it to __init__" if in_class else "put a * before it"
    names = _positional_inputs(entry) if entry.positional else tuple(_input(entry, p.name, to_set_it) for p in inputs)
    for parameter in settings:
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise SignatureError(
                f"{entry.name} ({entry.dist}) has the positional-only setting {parameter.name!r}, but settings are passed as keyword "
                "arguments. Remove the '/'"
            )
        if parameter.name in entry.kind.inputs or parameter.name in ALIASES:
            raise SignatureError(
                f"{entry.name} ({entry.dist}) has a setting {parameter.name!r}, which is the name of an input. "
                f"Rename the setting, or {to_get_it} to get the input"
            )
    check_setting_names(entry, (parameter.name for parameter in settings))
    hints = _annotations(function, settings)
    found = {p.name: Setting(hints[p.name], p.default) for p in settings}
    return Signature(names, found, makes)


def check_setting_names(entry: EntryInfo, names: Iterable[str]) -> None:
    """Check that no setting has a name that is reserved in configs.

    Raises: ``SignatureError``.
    """
    for name in names:
        if name in _TAKEN or (name in _TAKEN_BY_PROJECTIONS and entry.kind.plural == "projections"):
            raise SignatureError(
                f"{entry.name} ({entry.dist}) has a setting {name!r}, which cannot be set in a config: in "
                f"{{name: {entry.name}, …}} the key {name!r} has another meaning. Rename the setting"
            )


def _positional_inputs(entry: EntryInfo) -> tuple[str, ...]:
    return entry.kind.positional[entry.slot or next(iter(entry.kind.positional))]


def _input(entry: EntryInfo, name: str, to_set_it: str) -> str:
    known = ALIASES.get(name, name)
    if known in entry.kind.inputs:
        return known
    if name in entry.kind.built_with:
        raise SignatureError(
            f"{entry.name} ({entry.dist}) requests input {name!r}, which only __init__ of a {entry.kind.noun} class gets, as a "
            "positional parameter without a default"
        )
    near = did_you_mean(name, entry.kind.inputs)
    raise SignatureError(
        f"{entry.name} ({entry.dist}) requests input {name!r}, which the engine does not provide."
        f"{near or f' If {name!r} is a setting, {to_set_it}.'}"
    )


def _annotations(function: Callable[..., Any] | None, parameters: list[Parameter]) -> dict[str, Any]:
    """Return the annotation of each parameter, or ``Any`` if it is missing or cannot be evaluated.

    If evaluating all of them fails, each is evaluated separately: a name that exists only under ``TYPE_CHECKING`` must
    not affect the others.
    """
    if function is None or not parameters:
        return {p.name: Any for p in parameters}
    while isinstance(function, partial):
        function = function.func
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        hints = {p.name: _alone(function, p) for p in parameters}
    return {p.name: _inferred(p) if hints.get(p.name) is None else hints[p.name] for p in parameters}


def _alone(function: Callable[..., Any], parameter: Parameter) -> Any:
    if parameter.annotation is Parameter.empty:
        return None
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    alone = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(alone, scope, include_extras=True)["it"]
    except Exception:
        return None


def _inferred(parameter: Parameter) -> Any:
    """Infer a missing annotation from the type of a scalar default; an integer default allows any number."""
    default = parameter.default
    if isinstance(default, bool):
        return bool
    if isinstance(default, int):
        return int | float
    if isinstance(default, (float, str)):
        return type(default)
    return Any
