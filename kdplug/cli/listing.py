"""Every entry that is installed, and what has become of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.active import active
from kdplug.host.entry import Entry
from kdplug.host.kind import KINDS, Kind
from kdplug.host.plugin_code import described
from kdplug.host.registry import REGISTRIES

Status = Literal["ok", "shadowed", "ambiguous", "blocked", "incompatible", "broken"]

HOOKS = "hooks"
"""The kind under which plugins that hold hook implementations are listed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``kdplug plugins list``; ``error`` says why it is broken or what leaves it out."""

    name: str
    kind: str
    package: str
    version: str
    status: Status
    error: str | None = None


def read_kind(name: str) -> Kind:
    """The kind that ``name`` means: ``loss`` or ``losses``, ``weight-scheduler`` or ``weight_schedulers``.

    Raises: ``ConfigError`` with the nearest kind.
    """
    by_name = {spelling: kind for kind in KINDS.values() for spelling in (kind.plural, kind.noun.replace(" ", "_"))}
    folded = name.casefold().replace("-", "_").replace(" ", "_")
    if folded not in by_name:
        nouns = ", ".join(kind.noun.replace(" ", "_") for kind in KINDS.values())
        raise ConfigError(f"no kind {name!r}.{did_you_mean(name, by_name)} The kinds: {nouns}", field="--kind")
    return by_name[folded]


def rows(kind: Kind | None = None, *, load: bool = False) -> list[Row]:
    """Every entry of one kind or of all, by kind, then by package and name. ``load`` imports each, and every hook plugin."""
    if load:
        active().load_hooks()
    kinds = [kind] if kind is not None else list(KINDS.values())
    found = [row for one in kinds for row in (*_offered(one, load=load), *_left_out(one))]
    return found + (list(_hook_plugins()) if kind is None else [])


def failure(entry: Entry) -> str | None:
    """Why an entry cannot be used, or ``None`` where it can. Imports it."""
    try:
        entry.load()
        _ = entry.settings
    except KdplugError as error:
        return str(error)
    return None


def _offered(kind: Kind, *, load: bool) -> Iterator[Row]:
    registry = REGISTRIES[kind.plural]
    for entry in registry.entries():
        error = failure(entry) if load else None
        status: Status = "broken" if error else registry.status(entry)
        yield Row(entry.name, kind.noun, entry.dist, entry.version, status, error)


def _left_out(kind: Kind) -> Iterable[Row]:
    host = active()
    return [
        Row(
            point.name,
            kind.noun,
            dist.name,
            dist.version,
            "blocked" if dist in host.blocked else "incompatible",
            host.reason(dist),
        )
        for dist in host.left_out
        for point in dist.entry_points
        if point.group == kind.group
    ]


def _hook_plugins() -> Iterator[Row]:
    for plugin in active().hook_plugins:
        error = described(plugin.error) if plugin.error is not None else None
        yield Row(plugin.name, HOOKS, plugin.dist.name, plugin.dist.version, "broken" if error else "ok", error)
