"""Everything that can be wrong with the installed plugins, found by importing all of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace

from kdplug.errors import PluginError, did_you_mean
from kdplug.host.active import active, isolated
from kdplug.host.check.entry import check_entry, check_hooks, side_effects
from kdplug.host.check.finding import Finding
from kdplug.host.check.install import check_installations
from kdplug.host.check.installation import Installation, about_plugins, installations
from kdplug.host.entry import Entry
from kdplug.host.host import Host
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.metadata import Distribution
from kdplug.host.name import fold, fold_distribution
from kdplug.host.registry import REGISTRIES


def check_names() -> Iterator[Finding]:
    """Entries of the plugins in force that need their qualified name."""
    for registry in REGISTRIES.values():
        for entry in registry.entries():
            status = registry.status(entry)
            if status == "ok":
                continue
            others = [e.qualified for e in registry.entries() if fold(e.name) == fold(entry.name) and e is not entry]
            taken = ", ".join(others) or "a first-party package that is not installed"
            what = f"{registry.kind.noun} {entry.name!r} is {status}: the name is offered by {taken} too"
            mend = f"write {entry.qualified} in configs, or give it another name"
            yield Finding(entry.dist, status, "warning", what, str(entry.target), mend)


def check_left_out(host: Host) -> Iterator[Finding]:
    """Plugins that a switch leaves out, and those that were written for another kdplug."""
    for dist in host.left_out:
        if dist in host.blocked:
            what, mend = f"is left out by {host.reason(dist)}", "unset KDPLUG_PLUGINS"
            yield Finding(dist.name, "blocked", "warning", what, "KDPLUG_PLUGINS", mend)
        else:
            mend, where = f"pip install --upgrade {dist.name} kdplug", f"the metadata of {dist.name} {dist.version}"
            yield Finding(dist.name, "incompatible", "error", f"is left out: it {host.reason(dist)}", where, mend)


def check_switch(host: Host) -> Iterator[Finding]:
    """Names in ``KDPLUG_PLUGINS`` that no installed plugin has."""
    for message in host.switch.unknown(dist.name for dist in host.dists):
        mend = "correct the name, or unset KDPLUG_PLUGINS"
        yield Finding("kdplug", "switch", "error", message, "KDPLUG_PLUGINS", mend)


def check_plugins(only: str | None = None) -> list[Finding]:
    """What is wrong with the plugins in force, or with the distribution ``only``: errors first, then by distribution.

    Entries and hook plugins are imported, each apart from the others, and classes are made from their defaults.

    Raises: ``PluginError`` where nothing is installed that is called ``only``.
    """
    with _quiet():  # what is wrong with a switch is among the findings
        dists, switch = active().dists, replace(active().switch, strict=False)
    traces = installations()
    chosen = [dist for dist in dists if only is None or _same(dist.name, only)]
    if only is not None and not chosen and not any(_same(trace.dist, only) for trace in traces):
        near = did_you_mean(only, [dist.name for dist in dists])
        raise PluginError(f"no distribution {only!r} is installed.{near}")
    found: list[Finding] = []
    with _quiet():
        with isolated(dists, switch) as host:
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
    """What one distribution offers, seen alone."""
    with isolated([replace(dist, others=())]) as host:  # of other versions, the checks of installations tell
        yield from check_hooks(host)
        offered = [entry for names in host.entries.values() for peers in names.values() for entry in peers]
        for entry in sorted((e for e in offered if e.origin != "local"), key=lambda e: (e.kind.plural, e.name)):
            yield from _check_apart(entry)
        yield from side_effects(host)


def _check_apart(entry: Entry) -> list[Finding]:
    """The findings of one entry, whatever its code raises: reading a docstring or a source file runs it too."""
    done = run_plugin_code(lambda: list(check_entry(entry)), f"checking {entry.qualified!r}", entry.dist, "read")
    if done.error is None:
        return done.value or []
    what, where = f"{entry.name} cannot be checked: {described(done.error)}", str(entry.target)
    return [Finding(entry.dist, "broken", "error", what, where, f"see  kdplug plugins show {entry.qualified}")]


def _offers_nothing(only: str, traces: list[Installation]) -> Finding:
    trace = next(one for one in traces if _same(one.dist, only))
    what = "is installed, and offers nothing to kdplug: it has no entry point in a group of kdplug's"
    mend = 'add [project.entry-points."kdplug.losses"] to its pyproject.toml, then install it again: pip install -e .'
    return Finding(trace.dist, "offers-nothing", "error", what, str(trace.folder), mend)


def _same(one: str, other: str) -> bool:
    return fold_distribution(one) == fold_distribution(other)


@contextmanager
def _quiet() -> Iterator[None]:
    """Plugins may warn and print as they are imported: neither belongs among the findings."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
