"""Check the installed plugins: import all of them and collect the problems."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace

from kdplug.errors import PluginError
from kdplug.host.active import active, isolated
from kdplug.host.check.entry import check_entry, check_hooks, side_effects
from kdplug.host.check.finding import Finding
from kdplug.host.check.install import check_installations
from kdplug.host.check.installation import Installation, about_plugins, installations
from kdplug.host.entry import Entry
from kdplug.host.host import Host
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.metadata import Distribution, not_installed, undecodable
from kdplug.host.name import fold, fold_distribution
from kdplug.host.registry import REGISTRIES


def check_names() -> Iterator[Finding]:
    """Yield a finding for each entry that can only be used by its qualified name."""
    for registry in REGISTRIES.values():
        for entry in registry.entries():
            status = registry.status(entry)
            if status == "ok":
                continue
            others = [e.qualified for e in registry.entries() if fold(e.name) == fold(entry.name) and e is not entry]
            taken = ", ".join(others) or "a first-party package that is not installed"
            what = f"{registry.kind.noun} {entry.name!r} is {status}: the name is also offered by {taken}"
            fix = f"write {entry.qualified} in configs, or rename the entry"
            yield Finding(entry.dist, status, "warning", what, str(entry.target), fix)


def check_left_out(host: Host) -> Iterator[Finding]:
    """Yield a finding for each plugin that ``KDPLUG_PLUGINS`` disables or that requires another version of kdplug."""
    for dist in host.left_out:
        if dist in host.blocked:
            what, fix = f"is disabled by {host.reason(dist)}", "unset KDPLUG_PLUGINS"
            yield Finding(dist.name, "blocked", "warning", what, "KDPLUG_PLUGINS", fix)
        else:
            fix, where = f"pip install --upgrade {dist.name} kdplug", f"the metadata of {dist.name} {dist.version}"
            yield Finding(dist.name, "incompatible", "error", f"is ignored: it {host.reason(dist)}", where, fix)


def check_switch(host: Host) -> Iterator[Finding]:
    """Yield a finding for each name in ``KDPLUG_PLUGINS`` that matches no installed plugin."""
    for message in host.plugin_filter.unknown(dist.name for dist in host.dists):
        fix = "correct the name, or unset KDPLUG_PLUGINS"
        yield Finding("kdplug", "switch", "error", message, "KDPLUG_PLUGINS", fix)


def check_plugins(only: str | None = None) -> list[Finding]:
    """Check the active plugins, or only the distribution ``only``. Errors come first, then findings by distribution.

    Entries and hook plugins are imported separately from each other, and classes are instantiated from their defaults.

    Raises: ``PluginError`` if no distribution called ``only`` is installed.
    """
    with _quiet():  # an invalid filter is reported as a finding
        dists, plugin_filter = active().dists, replace(active().plugin_filter, strict=False)
    traces = installations()
    chosen = [dist for dist in dists if only is None or _same(dist.name, only)]
    if only is not None and not chosen and not any(_same(trace.dist, only) for trace in traces):
        raise PluginError(not_installed(only, [dist.name for dist in dists]))
    found: list[Finding] = []
    # Importing a plugin would import torch, which fails half-way; a second import would crash the process.
    if undecodable():
        broken = [finding for finding in check_installations(about_plugins(traces)) if finding.check == "unreadable"]
        return [
            replace(one, what=f"{one.what}. No plugin was imported, because torch also reads this file")
            for one in broken
        ]
    with _quiet():
        with isolated(dists, plugin_filter) as host:
            host.load_hooks()
            found += [*side_effects(host), *check_switch(host), *check_left_out(host), *check_names()]
            left_out = list(host.left_out)
        for dist in chosen:
            if dist not in left_out:
                found += _check_dist(dist)
    found += check_installations(about_plugins(traces))
    found = [one for one in found if only is None or _same(one.dist, only)]
    if only is not None and not chosen and not found:
        found.append(_offers_nothing(only, traces))
    return sorted(dict.fromkeys(found), key=lambda one: (one.level, fold_distribution(one.dist), one.check, one.what))


def _check_dist(dist: Distribution) -> Iterator[Finding]:
    """Yield the findings of one distribution, loaded alone."""
    with isolated([replace(dist, others=())]) as host:  # other versions are reported by the checks of installations
        yield from check_hooks(host)
        offered = [entry for names in host.entries.values() for peers in names.values() for entry in peers]
        for entry in sorted((e for e in offered if e.origin != "local"), key=lambda e: (e.kind.plural, e.name)):
            yield from _check_apart(entry)
        yield from side_effects(host)


def _check_apart(entry: Entry) -> list[Finding]:
    """Return the findings of one entry, in isolation: even reading its docstring or source may run plugin code."""
    done = run_plugin_code(lambda: list(check_entry(entry)), f"checking {entry.qualified!r}", entry.dist, "read")
    if done.error is None:
        return done.value or []
    what, where = f"{entry.name} cannot be checked: {described(done.error)}", str(entry.target)
    return [Finding(entry.dist, "broken", "error", what, where, f"see  kdplug plugins show {entry.qualified}")]


def _offers_nothing(only: str, traces: list[Installation]) -> Finding:
    trace = next(one for one in traces if _same(one.dist, only))
    what = "is installed but has no entry point in a kdplug group"
    fix = 'add [project.entry-points."kdplug.losses"] to its pyproject.toml, then install it again: pip install -e .'
    return Finding(trace.dist, "offers-nothing", "error", what, str(trace.folder), fix)


def _same(one: str, other: str) -> bool:
    return fold_distribution(one) == fold_distribution(other)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and the output of plugins while they are imported."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
