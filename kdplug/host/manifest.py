"""Plugin records of a run: its header line and the environment in ``kdplug-run.json``."""

from __future__ import annotations

import csv
import platform
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from kdplug.contracts.version import PLUGIN_API
from kdplug.host.active import active
from kdplug.host.isolation.plugin_code import described
from kdplug.host.kind import HOOK_GROUP
from kdplug.host.metadata import Distribution, installed_version

_ENTRY_POINTS = "entry_points.txt"


def content_hash(dist: Distribution) -> str | None:
    """Return the SHA-256 of the paths and hashes of a plugin's own files; ``None`` if not listed or not readable.

    ``RECORD`` lists these files. Its machine-dependent lines (installer, source folder, compiled files, scripts) are
    ignored. An editable install lists none of its source, so the packages named by its entry points are read instead.
    Nothing is imported.
    """
    record = dist.record
    try:
        return _hash(dist, record) if record else None
    except (csv.Error, OSError, ValueError):
        return None


def _hash(dist: Distribution, record: str) -> str:
    listed = dict(_listed(record))
    if dist.editable:
        listed = {path: digest for path, digest in listed.items() if path == _ENTRY_POINTS}
        for module in sorted({point.value.partition(":")[0].strip().partition(".")[0] for point in dist.entry_points}):
            listed |= dict(_source(module))
    lines = "".join(f"{path},{digest}\n" for path, digest in sorted(listed.items()))
    return sha256(lines.encode()).hexdigest()


def _listed(record: str) -> Iterator[tuple[str, str]]:
    for row in csv.reader(record.splitlines()):
        path = PurePosixPath(row[0]) if row else PurePosixPath()
        if path.parts[:1] and path.parts[0].endswith((".dist-info", ".data")):
            if path.name == _ENTRY_POINTS:
                yield _ENTRY_POINTS, _digest_of(row)
        elif path.parts and ".." not in path.parts and not path.is_absolute() and path.suffix != ".pyc":
            yield str(path), _digest_of(row)


def _digest_of(row: list[str]) -> str:
    return row[1] if len(row) > 1 else ""


def _source(module: str) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each file of a top-level package or module, as in a wheel's ``RECORD``."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin is not None and Path(spec.origin).is_file():
            yield Path(spec.origin).name, _digest(Path(spec.origin))
        return
    for folder in map(Path, spec.submodule_search_locations):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                yield str(PurePosixPath(module, *file.relative_to(folder).parts)), _digest(file)


def _digest(file: Path) -> str:
    found = sha256(file.read_bytes()).digest()
    return f"sha256={urlsafe_b64encode(found).rstrip(b'=').decode()}"


def header_line() -> str:
    """Return one line with the versions of kdplug, torch and every plugin."""
    host = active()
    names = [_named(dist) for dist in host.dists if dist not in host.left_out]
    left_out = [f"ignored: {', '.join(dist.name for dist in host.left_out)}"] if host.left_out else []
    core = [f"kdplug {installed_version('kdplug') or '(not installed)'}", f"torch {installed_version('torch')}"]
    return " · ".join([*core, "plugins: " + (", ".join(names) or "none"), *left_out])


def environment_record() -> dict[str, Any]:
    """Return the versions of kdplug, Python and torch, and every plugin, enabled or not. Nothing is imported."""
    return {
        "kdplug": installed_version("kdplug"),
        "plugin_api": PLUGIN_API,
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "plugins": plugin_records(),
        "ignored_plugins": ignored_records(),
    }


def plugin_records() -> list[dict[str, Any]]:
    """Return the enabled plugins: distribution, version, editable, VCS commit, SHA-256 of the content, hook plugins."""
    host = active()
    return [_record(dist) for dist in host.dists if dist not in host.left_out]


def ignored_records() -> list[dict[str, str]]:
    """Return the disabled or incompatible plugins and failed hook plugins, with the reason."""
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
