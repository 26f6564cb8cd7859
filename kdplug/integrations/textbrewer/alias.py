"""Make ``import textbrewer`` import this package, so that scripts run without edits."""

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
"""The modules that ``install()`` replaced, until ``uninstall()``."""


def install() -> None:
    """Make ``import textbrewer`` and its submodules import this package, in this process.

    This hides an installed TextBrewer. If it was imported already, its modules are set aside, but names imported from
    it keep referring to it. A second call does nothing.
    """
    global _replaced  # noqa: PLW0603  sys.modules is global, and so is this state
    if _replaced is not None:
        return
    _replaced = _take_out()
    sys.modules[_THEIRS] = import_module(_OURS)
    for name in _SUBMODULES:
        sys.modules[f"{_THEIRS}.{name}"] = import_module(f"{_OURS}.{name}")


def uninstall() -> None:
    """Undo ``install()``."""
    global _replaced  # noqa: PLW0603
    if _replaced is None:
        return
    _take_out()
    sys.modules.update(_replaced)
    _replaced = None


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == _THEIRS or name.startswith(f"{_THEIRS}.")]
    return {name: sys.modules.pop(name) for name in names}
