"""Every error that kdplug raises on purpose.

    KdplugError
    ├── ConfigError            a value in a config, a recipe or a call          (ValueError)
    │   ├── UnknownKeyError    a key that does not exist
    │   └── SettingError       a setting of a component
    ├── EntryError             a name that leads to no usable entry             (ValueError)
    │   ├── UnknownEntryError  nothing of that name                             (KeyError)
    │   ├── NotInstalledError  known, but its package is not installed          (KeyError)
    │   ├── AmbiguousEntryError  offered by several packages                    (KeyError)
    │   └── BrokenEntryError   installed, but importing it failed               (ImportError)
    ├── SignatureError         what a plugin's callable asks for                (TypeError)
    ├── PluginError            a plugin as a whole, or a switch that names one  (ValueError)
    ├── OutputsError           what an adaptor returned                         (ValueError)
    ├── ShapeError             tensors that do not fit each other               (ValueError)
    └── RunError               a run that cannot start or go on                 (RuntimeError)

Every message names the field, the value, the owner and the nearest fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Self

__all__ = [
    "AmbiguousEntryError",
    "BrokenEntryError",
    "ConfigError",
    "EntryError",
    "KdplugError",
    "NotInstalledError",
    "OutputsError",
    "PluginError",
    "RunError",
    "SettingError",
    "ShapeError",
    "SignatureError",
    "UnknownEntryError",
    "UnknownKeyError",
    "did_you_mean",
    "nearest",
]

_LONGEST_NAME = 100
_MOST_CHOICES = 500
"""Comparing a longer name, or one with more choices, would take seconds."""


class KdplugError(Exception):
    """Root of every error that kdplug raises on purpose.

    ``field`` is the dotted path of the value in question (``intermediate_matches.1.loss``),
    empty where there is none; ``message`` is the text without it.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def at(self, *path: object) -> Self:
        """Put ``path`` in front of the field that this error names, and return the error."""
        parts = [str(part) for part in path] + ([self.field] if self.field else [])
        self.field = ".".join(parts)
        return self

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(KdplugError, ValueError):
    """A value in a config, a recipe or a call is wrong."""


class UnknownKeyError(ConfigError):
    """A config holds a key that does not exist."""


class SettingError(ConfigError):
    """A setting of a component is missing, unknown or out of bounds."""


class EntryError(KdplugError, ValueError):
    """A name leads to no usable entry."""


class UnknownEntryError(EntryError, KeyError):
    """No installed or registered entry has this name."""


class NotInstalledError(EntryError, KeyError):
    """The name is known, but the package that offers it is not installed."""


class AmbiguousEntryError(EntryError, KeyError):
    """Several packages offer this name."""


class BrokenEntryError(EntryError, ImportError):
    """The entry is installed, but importing it failed; ``__cause__`` holds the original error."""


class SignatureError(KdplugError, TypeError):
    """A plugin's callable asks for something that the engine does not provide."""


class PluginError(KdplugError, ValueError):
    """A plugin as a whole is unusable, or a switch names one that does not exist."""


class OutputsError(KdplugError, ValueError):
    """An adaptor returned something that the objective cannot use."""


class ShapeError(KdplugError, ValueError):
    """Tensors that belong together do not fit each other."""


class RunError(KdplugError, RuntimeError):
    """A run cannot start or cannot go on."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or ``None`` where nothing is like it."""
    from difflib import get_close_matches

    if len(name) > _LONGEST_NAME:
        return None
    by_fold = {choice.casefold().replace("-", "_"): choice for choice in islice(choices, _MOST_CHOICES)}
    found = get_close_matches(name.casefold().replace("-", "_"), by_fold, n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest choice, or the empty string."""
    found = nearest(name, choices)
    return f" Did you mean {found!r}?" if found else ""
