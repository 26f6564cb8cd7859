"""Version of kdplug and of its plugin contract."""

from __future__ import annotations

VERSION = "0.1.0"

PLUGIN_API = 1
"""Version of the contract between kdplug and its plugins: entry-point groups, inputs, hooks, loss return types.

It increases only if a working plugin may break. kdplug's major version then increases too, or its minor version while
the major is 0. A plugin that depends on ``kdplug>=0.1,<0.2`` therefore specifies the contract it was written for.
"""
