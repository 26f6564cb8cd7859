"""Plugins with one thing wrong, and what a check finds."""

from __future__ import annotations

from fake_install import FakeSite

from kdplug.host.check.check import check_plugins
from kdplug.host.check.finding import Finding

GOOD = 'def f(student_logits, teacher_logits):\n    "A loss."\n'


def found(site: FakeSite, only: str = "kdplug-a", **switch: object) -> list[Finding]:
    with site.host(**switch):
        return check_plugins(only)


def one(site: FakeSite, only: str = "kdplug-a", **switch: object) -> Finding:
    (finding,) = found(site, only, **switch)
    return finding


def add(site: FakeSite, source: str, *, name: str = "kdplug-a", target: str = "f", group: str = "losses") -> str:
    """A plugin with one entry ``x``; gives the path of its module."""
    module = name.replace("-", "_")
    site.add(name, files={f"{module}.py": source}, **{group: {"x": f"{module}:{target}"}})
    return str(site.folder / f"{module}.py")
