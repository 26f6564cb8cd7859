"""Which plugins took part: the header line of a run and the records that it leaves."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from kdplug.host.active import active
from kdplug.host.metadata import Distribution, installed_version


def header_line() -> str:
    """One line that names kdplug, torch and every plugin with its version."""
    host = active()
    names = [_named(dist) for dist in host.dists if dist not in host.blocked]
    blocked = [f"left out: {', '.join(dist.name for dist in host.blocked)}"] if host.blocked else []
    core = [f"kdplug {installed_version('kdplug') or '(not installed)'}", f"torch {installed_version('torch')}"]
    return " · ".join([*core, "plugins: " + (", ".join(names) or "none"), *blocked])


def plugin_records() -> list[dict[str, Any]]:
    """Every plugin that is let in: distribution, version, editable, VCS commit, SHA-256 of its list of installed files."""
    host = active()
    return [_record(dist) for dist in host.dists if dist not in host.blocked]


def ignored_records() -> list[dict[str, str]]:
    """Every plugin that is left out, with the reason."""
    host = active()
    reason = f"KDPLUG_PLUGINS={host.switch.text!r}"
    blocked = [{"dist": dist.name, "version": dist.version, "reason": reason} for dist in host.blocked]
    broken = [
        {"dist": plugin.dist.name, "version": plugin.dist.version, "reason": f"{plugin.name}: {plugin.error}"}
        for plugin in host.hook_plugins
        if plugin.error is not None
    ]
    return blocked + broken


def _named(dist: Distribution) -> str:
    return f"{dist.name} {dist.version}{' (editable)' if dist.editable else ''}"


def _record(dist: Distribution) -> dict[str, Any]:
    record = dist.record
    return {
        "dist": dist.name,
        "version": dist.version,
        "editable": dist.editable,
        "commit": dist.commit,
        "sha256": sha256(record.encode()).hexdigest() if record else None,
    }
