"""Making ``import textbrewer`` mean this package, for scripts that are not to be edited."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_OURS = "kdplug.integrations.textbrewer"
_THEIRS = "textbrewer"
_SUBMODULES = (
    "compatibility",
    "configurations",
    "data_utils",
    "distiller_basic",
    "distiller_general",
    "distiller_multitask",
    "distiller_multiteacher",
    "distiller_train",
    "distiller_utils",
    "distillers",
    "losses",
    "presets",
    "projections",
    "schedulers",
    "utils",
)

_replaced: dict[str, ModuleType] | None = None
"""The modules that stood under TextBrewer's names before, while this package stands there."""


def install() -> None:
    """Make ``import textbrewer``, and its submodules, mean this package in this process.

    A TextBrewer that is installed is hidden, and one that was imported is set aside; what a script has taken from it
    before stays what it is. A second call changes nothing.
    """
    global _replaced  # noqa: PLW0603  the process has one table of modules, and so one state
    if _replaced is not None:
        return
    _replaced = _take_out()
    sys.modules[_THEIRS] = import_module(_OURS)
    for name in _SUBMODULES:
        sys.modules[f"{_THEIRS}.{name}"] = import_module(f"{_OURS}.{name}")


def uninstall() -> None:
    """Take ``install()`` back: ``import textbrewer`` means what it meant before."""
    global _replaced  # noqa: PLW0603
    if _replaced is None:
        return
    _take_out()
    sys.modules.update(_replaced)
    _replaced = None


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == _THEIRS or name.startswith(f"{_THEIRS}.")]
    return {name: sys.modules.pop(name) for name in names}
