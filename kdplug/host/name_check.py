"""Checks of names: what a bare name means now that everything is installed, and which plugins are left out."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.host.finding import Finding
from kdplug.host.host import Host
from kdplug.host.name import fold
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
