"""Which plugins took part: the header line of a run and the records that it leaves."""

from __future__ import annotations

import platform
from typing import Any

from kdplug.contracts.version import PLUGIN_API
from kdplug.host.active import active
from kdplug.host.content import content_hash
from kdplug.host.kind import HOOK_GROUP
from kdplug.host.metadata import Distribution, installed_version
from kdplug.host.plugin_code import described


def header_line() -> str:
    """One line that names kdplug, torch and every plugin with its version."""
    host = active()
    names = [_named(dist) for dist in host.dists if dist not in host.left_out]
    left_out = [f"left out: {', '.join(dist.name for dist in host.left_out)}"] if host.left_out else []
    core = [f"kdplug {installed_version('kdplug') or '(not installed)'}", f"torch {installed_version('torch')}"]
    return " · ".join([*core, "plugins: " + (", ".join(names) or "none"), *left_out])


def environment_record() -> dict[str, Any]:
    """Versions of kdplug, Python and torch, and every plugin, let in or left out. Nothing is imported."""
    return {
        "kdplug": installed_version("kdplug"),
        "plugin_api": PLUGIN_API,
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "plugins": plugin_records(),
        "ignored_plugins": ignored_records(),
    }


def plugin_records() -> list[dict[str, Any]]:
    """Every plugin that is let in: distribution, version, editable, VCS commit, SHA-256 of its content, hook plugins."""
    host = active()
    return [_record(dist) for dist in host.dists if dist not in host.left_out]


def ignored_records() -> list[dict[str, str]]:
    """Every plugin that is left out, and every hook plugin that failed, with the reason."""
    host = active()
    left_out = [
        {"dist": dist.name, "version": dist.version, "reason": host.reason(dist)}
        for dist in host.dists
        if dist in host.left_out
    ]
    broken = [
        {
            "dist": plugin.dist.name,
            "version": plugin.dist.version,
            "reason": f"{plugin.name}: {described(plugin.error)}",
        }
        for plugin in host.hook_plugins
        if plugin.error is not None
    ]
    return left_out + broken


def _named(dist: Distribution) -> str:
    return f"{dist.name} {dist.version}{' (editable)' if dist.editable else ''}"


def _record(dist: Distribution) -> dict[str, Any]:
    return {
        "dist": dist.name,
        "version": dist.version,
        "editable": dist.editable,
        "commit": dist.commit,
        "sha256": content_hash(dist),
        "hooks": sorted(point.name for point in dist.entry_points if point.group == HOOK_GROUP),
    }
