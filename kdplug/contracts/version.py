"""Which kdplug this is, for people and for plugins."""

from __future__ import annotations

VERSION = "0.1.0"

PLUGIN_API = 1
"""The contract between kdplug and its plugins: entry-point groups, inputs, hooks, what a loss may return.

It rises only where a plugin that worked may stop working, and then kdplug's version rises in its first number, or in its
second while the first is 0. So ``kdplug>=0.1,<0.2`` among a plugin's dependencies says which contract it was written for.
"""
