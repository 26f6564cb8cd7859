"""What a hook plugin implements: functions named ``kdplug_…``, each with any subset of its hook's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from kdplug.errors import SignatureError, did_you_mean
from kdplug.host import hookspec

_HOOKS = {name: spec for name, spec in vars(hookspec).items() if name.startswith(hookspec.PREFIX)}

_LIFE_CYCLE = ("kdplug_run_start", "kdplug_step_end", "kdplug_run_end")


class Implementations:
    """The hook implementations of a plugin, without the object that holds them.

    pluggy compares plugins with ``==``, and a plugin whose ``__eq__`` returns true would keep out those after it.
    """

    def __init__(self, plugin: object) -> None:
        for name, found, _ in _implemented(plugin):
            if name.startswith(hookspec.PREFIX):
                setattr(self, name, found)


def check_arguments(plugin: object) -> None:
    """Raises: ``SignatureError`` where an implementation asks for what its hook does not give."""
    for name, function, _ in _implemented(plugin):
        if name not in _HOOKS or not inspect.isroutine(function):
            continue
        given = inspect.signature(_HOOKS[name]).parameters
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            is_asked = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
            if is_asked and parameter.name not in (*given, "self"):
                from kdplug.host.finding import place_of

                near = did_you_mean(parameter.name, given) or f" It gives {', '.join(given) or 'nothing'}"
                raise SignatureError(
                    f"{name} ({place_of(function)}) asks for {parameter.name!r}, which the hook does not give.{near}"
                )


def odd_hooks(owner: str, plugin: object) -> list[str]:
    """What a hook plugin implements that is never called."""
    odd = []
    for name, function, marks in _implemented(plugin):
        if name not in _HOOKS and callable(function) and (name.startswith(hookspec.PREFIX) or marks):
            odd.append(f"{owner} implements {name}, which is no hook.{did_you_mean(name, _HOOKS)}")
        elif marks.get("wrapper") or marks.get("hookwrapper"):
            odd.append(f"{owner} implements {name} as a wrapper, which is not called. Write a plain function")
        elif name in _LIFE_CYCLE and (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)):
            odd.append(
                f"{owner} implements {name} as a generator or coroutine, which never runs. Write a plain function"
            )
    return odd


def _implemented(plugin: object) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Everything that a module or object holds, with pluggy's marks."""
    for name in dir(plugin):
        found = getattr(plugin, name, None)
        marks = getattr(found, f"{hookspec.PROJECT}_impl", None)
        yield name, found, marks if isinstance(marks, dict) else {}
