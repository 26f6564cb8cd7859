"""Exception classes of kdplug.

    KdplugError
    ├── ConfigError            a value in a config, a recipe or a call          (ValueError)
    │   ├── UnknownKeyError    a key that does not exist
    │   └── SettingError       a setting of a component
    ├── EntryError             a name without a usable entry                    (ValueError)
    │   ├── UnknownEntryError  no entry has this name                           (KeyError)
    │   ├── NotInstalledError  its package is not installed                     (KeyError)
    │   ├── AmbiguousEntryError  offered by several packages                    (KeyError)
    │   └── BrokenEntryError   installed, but importing it failed               (ImportError)
    ├── SignatureError         the parameters of a plugin's callable            (TypeError)
    ├── PluginError            a whole plugin, or KDPLUG_PLUGINS                (ValueError)
    ├── OutputsError           the return value of an adaptor                   (ValueError)
    ├── ShapeError             tensors of incompatible shapes                   (ValueError)
    └── RunError               a run that cannot start or continue              (RuntimeError)

A message names the field, the value, the owner and the nearest fix, as far as they exist.
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
"""Limits for ``nearest``: comparing longer names, or more choices, would take seconds."""


class KdplugError(Exception):
    """Base class of all kdplug errors.

    ``field`` is the dotted path of the value (``intermediate_matches.1.loss``), or empty; ``message`` is the text
    without the path.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def at(self, *path: object) -> Self:
        """Prepend ``path`` to ``field`` and return the error."""
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
    """A name has no usable entry."""


class UnknownEntryError(EntryError, KeyError):
    """No installed or registered entry has this name."""


class NotInstalledError(EntryError, KeyError):
    """The package that offers the name, or that a qualified name starts with, is not installed."""


class AmbiguousEntryError(EntryError, KeyError):
    """Several packages offer this name."""


class BrokenEntryError(EntryError, ImportError):
    """The entry is installed, but importing it failed; ``__cause__`` holds the original error."""


class SignatureError(KdplugError, TypeError):
    """A plugin's callable has a parameter that the engine does not provide."""


class PluginError(KdplugError, ValueError):
    """A whole plugin is unusable, or ``KDPLUG_PLUGINS`` names one that does not exist."""


class OutputsError(KdplugError, ValueError):
    """An adaptor returned something that the objective cannot use."""


class ShapeError(KdplugError, ValueError):
    """Tensors have incompatible shapes."""


class RunError(KdplugError, RuntimeError):
    """A run cannot start or cannot continue."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice most similar to ``name``, or ``None`` if none is similar."""
    from difflib import get_close_matches

    if len(name) > _LONGEST_NAME:
        return None
    by_fold = {choice.casefold().replace("-", "_"): choice for choice in islice(choices, _MOST_CHOICES)}
    found = get_close_matches(name.casefold().replace("-", "_"), by_fold, n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest choice, or an empty string."""
    found = nearest(name, choices)
    return f" Did you mean {found!r}?" if found else ""
