"""The registries: names to callables, one registry for each kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from kdplug.errors import (
    AmbiguousEntryError,
    EntryError,
    NotInstalledError,
    PluginError,
    UnknownEntryError,
    nearest,
)
from kdplug.host.active import active
from kdplug.host.component import Component, build_component
from kdplug.host.entry import Entry
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.host import PluginWarning
from kdplug.host.kind import KINDS, Kind
from kdplug.host.name import fold, fold_distribution, split_qualified
from kdplug.host.spec import parse_spec

F = TypeVar("F", bound=Callable[..., Any])
Status = Literal["ok", "shadowed", "ambiguous"]


class Registry(Mapping[str, Callable[..., Any]]):
    """The entries of one kind, by name.

    ``registry["name"]`` imports that entry alone; ``in``, ``len``, iteration and ``names()`` import nothing. A bare name
    means a callable registered in this process, else a first-party entry, else the only third-party one; a qualified name
    (``distribution:name``) always means the same entry.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<kdplug.{self.kind.plural}: {len(self)} names>"

    def entries(self) -> list[Entry]:
        """Every entry, ordered by qualified name."""
        offered = active().entries[self.kind.plural].values()
        return sorted((entry for group in offered for entry in group), key=lambda e: (fold(e.dist), fold(e.name)))

    def names(self) -> list[str]:
        """The bare names, sorted."""
        return sorted({entry.name for entry in self.entries()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(active().entries[self.kind.plural])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._candidates(name, None))

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.load(name)

    def load(self, name: str) -> Callable[..., Any]:
        """The callable of that name.

        Raises: ``EntryError`` (unknown, not installed, ambiguous or broken).
        """
        return self.entry(name).load()

    def entry(self, name: str, site: str | None = None) -> Entry:
        """The entry that ``name`` means, without importing it. ``site`` is the place of a loss: ``kd`` or ``match``.

        Raises: ``UnknownEntryError``, ``NotInstalledError``, ``AmbiguousEntryError``.
        """
        found = self._candidates(name, site)
        if not found:
            active().load_hooks()
            found = self._candidates(name, site)
        if not found:
            raise self._missing(name)
        return self._chosen(name, found)

    def check(self, spec: object, site: str | None = None) -> Entry:
        """The entry that a component names; nothing is imported, settings are not looked at.

        Raises: ``EntryError``, ``ConfigError``.
        """
        return self.entry(parse_spec(spec).name, site)

    def build(self, spec: object, site: str | None = None) -> Component:
        """Import the entry that ``spec`` names and bind its settings.

        Raises: ``EntryError``, ``ConfigError`` (``SettingError``), ``SignatureError``.
        """
        parsed = parse_spec(spec)
        return build_component(self.entry(parsed.name, site), parsed, site)

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that offers a callable in this process, under ``local:name``. The star rule holds for it.

        Raises: ``PluginError`` where ``name`` is no entry name.
        """

        def put(target: F) -> F:
            active().put(self.kind, name, target, positional=False, site=None)
            return target

        return put

    def status(self, entry: Entry) -> Status:
        """Whether the bare name means this entry (``ok``), another one (``shadowed``), or nothing (``ambiguous``)."""
        peers = [e for e in self._candidates(entry.name, None) if e.site in (None, entry.site)]
        best = min(_rank(peer) for peer in peers)
        if _rank(entry) > best:
            return "shadowed"
        return "ok" if sum(_rank(peer) == best for peer in peers) == 1 else "ambiguous"

    def _candidates(self, name: str, site: str | None) -> list[Entry]:
        dist, bare = split_qualified(name)
        offered = active().entries[self.kind.plural].get(fold(bare), [])
        return [
            entry
            for entry in offered
            if (not dist or fold_distribution(entry.dist) == fold_distribution(dist))
            and (site is None or entry.site in (None, site))
        ]

    def _chosen(self, name: str, found: list[Entry]) -> Entry:
        best = min(_rank(entry) for entry in found)
        chosen = [entry for entry in found if _rank(entry) == best]
        if len(chosen) > 1:
            listed = ", ".join(f"{e.qualified} ({e.version})" for e in sorted(chosen, key=lambda e: fold(e.dist)))
            packages = f"is offered by {len(chosen)} packages" if not best else "is offered more than once"
            packages = f"is offered by {len({e.dist for e in chosen})} packages" if best else packages
            raise AmbiguousEntryError(f"{name!r} {packages}: {listed}. Write one of these.")
        shadowed = [entry for entry in found if entry is not chosen[0] and _rank(entry) > best]
        if shadowed and (best == 0 or active().switch.strict):
            self._notice(name, chosen[0], shadowed)
        return chosen[0]

    def _notice(self, name: str, chosen: Entry, shadowed: list[Entry]) -> None:
        hidden = ", ".join(entry.qualified for entry in shadowed)
        message = f"{self.kind.noun} {name!r} means {chosen.qualified} and not {hidden}. Write the one you mean."
        if active().switch.strict:
            raise PluginError(message)
        warnings.warn(message, PluginWarning, stacklevel=4)

    def _missing(self, name: str) -> EntryError:
        dist, bare = split_qualified(name)
        for blocked in active().blocked:
            if any(p.group == self.kind.group and fold(p.name) == fold(bare) for p in blocked.entry_points):
                return NotInstalledError(
                    f"{name!r} is offered by {blocked.name} {blocked.version}, which "
                    f"KDPLUG_PLUGINS={active().switch.text!r} leaves out"
                )
        for package, offers in FIRST_PARTY.items():
            known = {fold(offer) for offer in offers.get(self.kind.plural, ())}
            if fold(bare) in known and dist in ("", package):
                return NotInstalledError(f"{name!r} is not installed. It is part of {package}: pip install {package}")
        problems = "".join(f"\n    {problem}" for problem in active().problems)
        return UnknownEntryError(f"no {self.kind.noun} {name!r}.{self._nearest(name)}{problems}")

    def _nearest(self, name: str) -> str:
        by_name = {entry.name: entry for entry in reversed(self.entries())}
        by_name |= {entry.qualified: entry for entry in self.entries()} if ":" in name else {}
        near = nearest(name, by_name)
        if near is not None:
            return f" Did you mean {near!r} ({by_name[near].owner})?"
        known = {
            offer: package for package, offers in FIRST_PARTY.items() for offer in offers.get(self.kind.plural, ())
        }
        near = nearest(name, known)
        return f" Did you mean {near!r} (pip install {known[near]})?" if near is not None else ""


def _rank(entry: Entry) -> int:
    if entry.origin == "local":
        return 0
    return 1 if fold_distribution(entry.dist) in FIRST_PARTY else 2


REGISTRIES = MappingProxyType({plural: Registry(kind) for plural, kind in KINDS.items()})
"""Every registry, by the plural of its kind."""

losses = REGISTRIES["losses"]
projections = REGISTRIES["projections"]
weight_schedulers = REGISTRIES["weight_schedulers"]
temperature_schedulers = REGISTRIES["temperature_schedulers"]
tasks = REGISTRIES["tasks"]
