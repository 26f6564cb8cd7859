"""Registries that map names to callables, one for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from kdplug.errors import (
    AmbiguousEntryError,
    EntryError,
    NotInstalledError,
    UnknownEntryError,
    nearest,
)
from kdplug.host.active import active
from kdplug.host.component import Component, build_component
from kdplug.host.entry import LOCAL, Entry
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.kind import KINDS, Kind
from kdplug.host.metadata import installed_version, not_installed
from kdplug.host.name import fold, fold_distribution, is_distribution_name, split_qualified
from kdplug.host.spec import parse_spec

_THIRD_PARTY = 3

F = TypeVar("F", bound=Callable[..., Any])
Status = Literal["ok", "shadowed", "ambiguous"]


class Registry(Mapping[str, Callable[..., Any]]):
    """The entries of one kind, by name.

    ``registry["name"]`` imports that entry only; ``in``, ``len``, iteration and ``names()`` import nothing. A bare name
    resolves to a callable registered in this process, else to a first-party entry, else to the only third-party entry
    (never for a first-party name, installed or not). A qualified name (``distribution:name``) always means the same
    entry.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<kdplug.{self.kind.plural}: {len(self)} names>"

    def entries(self) -> list[Entry]:
        """Return all entries, sorted by qualified name."""
        offered = active().entries[self.kind.plural].values()
        return sorted((entry for group in offered for entry in group), key=lambda e: (fold(e.dist), fold(e.name)))

    def names(self) -> list[str]:
        """Return the bare names, sorted."""
        offered = active().entries[self.kind.plural].values()
        return sorted(min(group, key=lambda entry: (_rank(entry, None), entry.dist)).name for group in offered)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(active().entries[self.kind.plural])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._candidates(name, None))

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.load(name)

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return the callable called ``name``.

        Raises: ``EntryError`` (unknown, not installed, ambiguous or broken).
        """
        return self._settled(name, None).load()

    def entry(self, name: str, slot: str | None = None, *, quiet: bool = False) -> Entry:
        """Return the entry called ``name`` without importing it. ``slot`` is the place of a loss: ``kd`` or ``match``.

        An unknown name loads the hook plugins. With ``quiet`` they are not loaded, and there is no warning about an
        entry that is hidden by a local one.

        Raises: ``UnknownEntryError``, ``NotInstalledError``, ``AmbiguousEntryError``.
        """
        found = self._candidates(name, slot)
        if not found and not quiet:
            active().load_hooks()
            found = self._candidates(name, slot)
        if not found:
            raise self._missing(name)
        chosen = self._chosen(name, found, slot)
        if not quiet:
            self._tell_hidden(name, chosen, found)
        return chosen

    def check(self, spec: object, slot: str | None = None) -> Entry:
        """Return the entry that a component names. It is not imported and settings are not checked.

        Raises: ``EntryError``, ``ConfigError``.
        """
        return self.entry(parse_spec(spec).name, slot)

    def build(self, spec: object, slot: str | None = None) -> Component:
        """Import the entry that ``spec`` names and bind its settings.

        Raises: ``EntryError``, ``ConfigError`` (``SettingError``), ``SignatureError``.
        """
        parsed = parse_spec(spec)
        return build_component(self._settled(parsed.name, slot), parsed, slot)

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a callable in this process as ``local:name``. The star rule applies.

        Raises: ``PluginError`` if ``name`` is not a valid entry name.
        """

        def put(target: F) -> F:
            active().put(self.kind, name, target, positional=False, slot=None)
            return target

        return put

    def status(self, entry: Entry) -> Status:
        """Return ``ok`` if the bare name means this entry, ``shadowed`` if it means another, else ``ambiguous``."""
        peers = [e for e in self._candidates(entry.name, None) if e.slot in (None, entry.slot)]
        ranks = [_rank(peer, entry.slot) for peer in peers]
        if _rank(entry, entry.slot) > min(ranks) or (
            min(ranks) == _THIRD_PARTY and _is_reserved(self.kind, entry.name)
        ):
            return "shadowed"
        return "ok" if ranks.count(min(ranks)) == 1 else "ambiguous"

    def _candidates(self, name: str, slot: str | None) -> list[Entry]:
        dist, bare = split_qualified(name)
        offered = active().entries[self.kind.plural].get(fold(bare), [])
        return [entry for entry in offered if _is(entry.dist, dist) and (slot is None or entry.slot in (None, slot))]

    def _settled(self, name: str, slot: str | None) -> Entry:
        """Return the entry to import for ``name``. A hook plugin may offer another third-party entry of that name."""
        entry = self.entry(name, slot)
        if _rank(entry, slot) < _THIRD_PARTY or split_qualified(name)[0]:
            return entry
        active().load_hooks()
        return self.entry(name, slot)

    def _chosen(self, name: str, found: list[Entry], slot: str | None) -> Entry:
        best = min(_rank(entry, slot) for entry in found)
        chosen = sorted((e for e in found if _rank(e, slot) == best), key=lambda e: fold(e.dist))
        if best == _THIRD_PARTY and _is_reserved(self.kind, name):
            raise self._missing(name, f". To use another one, write {' or '.join(e.qualified for e in chosen)}")
        if len(chosen) == 1:
            return chosen[0]
        if chosen[0].origin == "local":
            raise AmbiguousEntryError(
                f"{name!r} is registered in this process both as a kd loss and as a match loss. Rename one of the two"
            )
        listed = ", ".join(f"{e.qualified} ({e.version})" for e in chosen)
        raise AmbiguousEntryError(f"{name!r} is offered by {len(chosen)} packages: {listed}. Write one of these.")

    def _tell_hidden(self, name: str, chosen: Entry, found: list[Entry]) -> None:
        hidden = sorted(entry.qualified for entry in found if entry.origin != "local" and entry is not chosen)
        if hidden and (chosen.origin == "local" or active().plugin_filter.strict):
            noun = self.kind.noun
            active().notice(
                f"{noun} {name!r} means {chosen.qualified} and not {', '.join(hidden)}. Write the one you mean."
            )

    def _missing(self, name: str, others: str = "") -> EntryError:
        dist, bare = split_qualified(name)
        for absent in active().left_out:
            if _is(absent.name, dist) and any(
                p.group == self.kind.group and fold(p.name) == fold(bare) for p in absent.entry_points
            ):
                blocked = absent in active().blocked
                why = f"is disabled by {active().reason(absent)}" if blocked else active().reason(absent)
                return NotInstalledError(f"{name!r} is offered by {absent.name} {absent.version}, which {why}{others}")
        for package, offers in FIRST_PARTY.items():
            if _is(package, dist) and fold(bare) in map(fold, offers.get(self.kind.plural, ())):
                return NotInstalledError(_absent(name, package) + others)
        problems = "".join(f"\n    {problem}" for problem in active().problems)
        if _is_absent(dist):
            similar = [one.name for one in active().dists if any(fold(p.name) == fold(bare) for p in one.entry_points)]
            return NotInstalledError(f"{name!r} is unknown: {not_installed(dist, similar)}{problems}")
        return UnknownEntryError(f"no {self.kind.noun} named {name!r}.{self._nearest(name)}{problems}")

    def _nearest(self, name: str) -> str:
        by_name = {entry.name: entry for entry in reversed(self.entries())}
        by_name |= {entry.qualified: entry for entry in self.entries()} if ":" in name else {}
        near = nearest(name, by_name)
        every = f" To list all: kdplug plugins list --kind {self.kind.noun.replace(' ', '_')}"
        if near is not None:
            return f" Did you mean {near!r} ({by_name[near].owner})?{every}"
        known = {
            offer: package for package, offers in FIRST_PARTY.items() for offer in offers.get(self.kind.plural, ())
        }
        near = nearest(name, known)
        if near is not None:
            return f" Did you mean {near!r} (pip install {known[near]})?{every}"
        return every


def _rank(entry: Entry, slot: str | None) -> int:
    if entry.origin == "local":
        return 0 if entry.slot == slot else 1
    own = FIRST_PARTY.get(fold_distribution(entry.dist))
    offers = own.get(entry.kind.plural, ()) if own is not None else ()
    return 2 if fold(entry.name) in map(fold, offers) else _THIRD_PARTY


def _is_reserved(kind: Kind, name: str) -> bool:
    """Return whether a bare name is reserved for a first-party entry: installing that must not change its meaning."""
    return any(fold(name) in map(fold, offers.get(kind.plural, ())) for offers in FIRST_PARTY.values())


def _is(package: str, dist: str) -> bool:
    """Return whether ``dist``, the distribution part of a name, is empty or means ``package``."""
    return not dist or fold_distribution(dist) == fold_distribution(package)


def _is_absent(dist: str) -> bool:
    """Return whether ``dist``, the distribution part of a name, is the name of one that is not installed."""
    if not is_distribution_name(dist) or dist.casefold() == LOCAL:
        return False
    return not any(_is(one.name, dist) for one in active().dists) and installed_version(dist) is None


def _absent(name: str, package: str) -> str:
    old = next((dist for dist in active().dists if _is(dist.name, package)), None)
    if old is None:
        return f"{name!r} is not installed. It is part of {package}: pip install {package}"
    again = "pip install -e . in its folder" if old.editable else f"pip install --upgrade {old.name}"
    return (
        f"{name!r} is part of {package}, but the installed {old.name} {old.version} does not offer this name: {again}"
    )


REGISTRIES = MappingProxyType({plural: Registry(kind) for plural, kind in KINDS.items()})
"""All registries by the plural of their kind."""

losses = REGISTRIES["losses"]
projections = REGISTRIES["projections"]
weight_schedulers = REGISTRIES["weight_schedulers"]
temperature_schedulers = REGISTRIES["temperature_schedulers"]
teacher_combiners = REGISTRIES["teacher_combiners"]
layer_maps = REGISTRIES["layer_maps"]
tasks = REGISTRIES["tasks"]
cache_codecs = REGISTRIES["cache_codecs"]
balancers = REGISTRIES["balancers"]
teacher_updates = REGISTRIES["teacher_updates"]
student_transforms = REGISTRIES["student_transforms"]
teachers = REGISTRIES["teachers"]
evaluators = REGISTRIES["evaluators"]
