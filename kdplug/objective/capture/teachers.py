"""The teachers' models, one or several, in the order of their keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import nn

from kdplug.errors import ConfigError
from kdplug.objective.capture.path import Modules
from kdplug.objective.teacher import Names

Models = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module] | None
"""A teacher, or several in order or by key; ``None`` if not available."""


def teacher_models(teacher: Models, names: Names) -> tuple[nn.Module, ...]:
    """Return the model of each teacher; empty if none is available.

    Raises: ``ConfigError`` if their number or keys do not match.
    """
    if teacher is None:
        return ()
    found: tuple[nn.Module, ...]
    if isinstance(teacher, Mapping):
        found = tuple(teacher[name] for name in names if name in teacher)
    elif isinstance(teacher, nn.Module) and not (len(names) > 1 and isinstance(teacher, nn.ModuleList)):
        found = (teacher,)
    else:
        found = tuple(cast("Iterable[nn.Module]", teacher))
    if len(found) != len(names):
        raise ConfigError(f"must be one model for each of {', '.join(names)}, got {len(found)}", field="teacher")
    return found


def teacher_modules(teacher: Models, names: Names) -> tuple[Modules | None, ...]:
    """Return the modules of each teacher by path, ``None`` if it is not available."""
    found = tuple(Modules(model, "teacher") for model in teacher_models(teacher, names))
    return found or (None,) * len(names)
