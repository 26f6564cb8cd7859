"""Every message that kdplug and its plugins raise or warn with, read from their source."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdplug import errors
from kdplug.errors import KdplugError
from spans.template import Source, Templates, called

ROOT = Path(__file__).parents[2]
EXPLANATIONS = Path(__file__).with_name("explanation.toml")

_NAMES = {"warn": "warning"}

ROOMS = {
    "config": "Messages about configs and recipes",
    "host": "Messages about plugins, names, signatures and settings",
    "contracts": "Messages about what an adaptor returned",
    "objective": "Messages of the objective",
    "engine": "Messages of a training",
    "distillers": "Messages of the distillers",
    "recipes": "Messages of a recipe's run",
    "report": "Messages of a report",
    "integrations": "Messages in other frameworks' loops",
    "cli": "Messages of the command line",
    "testing": "Messages of the author's kit",
}
"""Headings of rooms, in the order of the page. A room or plugin that is not named here comes after them, under its own name."""


PASSED_ON = ("kdplug/config/text.py:json_document", "kdplug/host/host.py:load_hooks")
"""Functions that raise the message of another error once more, as it is."""


class Site(NamedTuple):
    """Where a message is raised, or warned with: the error's name, or ``warning``; the file; what the file is about."""

    error: str
    file: str
    about: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message and the places that raise it."""

    template: str
    sites: tuple[Site, ...]

    @property
    def room(self) -> str:
        """The room or the plugin that it belongs to."""
        return Path(self.sites[0].file).parts[1].removesuffix(".py")


def messages() -> str:
    """A heading for each message, by room."""
    found, explained = read_messages(), explanations()
    rooms = sorted({one.room for one in found}, key=lambda room: ((*ROOMS, room).index(room), room))
    parts = []
    for room in rooms:
        parts.append(f"## {ROOMS.get(room, f'Messages of {room}')}")
        parts += [_section(one, explained.get(one.template, "")) for one in found if one.room == room]
    return "\n\n".join(parts)


def _section(message: Message, explanation: str) -> str:
    owners = "; ".join(dict.fromkeys(f"`{site.error}` from `{site.file}`" for site in message.sites))
    about = message.sites[0].about
    lines = [f"### {code(message.template)}", f"*{owners}.* {about}" if len(message.sites) == 1 else f"*{owners}.*"]
    return "\n\n".join([*lines, explanation] if explanation else lines)


def code(text: str) -> str:
    """``text`` as code, whatever backticks it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


@cache
def explanations() -> Mapping[str, str]:
    """What is written by hand of a message, by its template."""
    found: dict[str, str] = tomllib.loads(EXPLANATIONS.read_text(encoding="utf-8"))
    return {template: " ".join(text.split()) for template, text in found.items()}


def stale_explanations() -> list[str]:
    """Explanations of messages that nobody raises, each with the message that is most like it."""
    known = [message.template for message in read_messages()]
    return [
        f"{EXPLANATIONS.name} explains {template!r}, which nobody raises. Now: {get_close_matches(template, known, 3, 0.3)}"
        for template in explanations()
        if template not in known
    ]


@cache
def read_messages() -> tuple[Message, ...]:
    """Every message once, in the order of files and lines."""
    places: dict[str, list[Site]] = {}
    for template, site in _raised(_sources()):
        places.setdefault(template, []).append(site)
    return tuple(Message(template, tuple(dict.fromkeys(sites))) for template, sites in places.items())


def unreadable() -> list[str]:
    """Functions that raise something whose words cannot be read from the source, beside those of ``PASSED_ON``."""
    read = Templates(_sources())
    found = [
        f"{source.path.relative_to(ROOT).as_posix()}:{source.owner[call].name if call in source.owner else call.lineno}"
        for source in _sources()
        for call in raising(source, _error_names(_sources()))
        if not read.of(call.args[0], source)
    ]
    return [place for place in found if place not in PASSED_ON]


@cache
def _sources() -> tuple[Source, ...]:
    files = [*(ROOT / "kdplug").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    return tuple(Source.read(path) for path in sorted(files))


def _raised(sources: tuple[Source, ...]) -> Iterator[tuple[str, Site]]:
    names, read = _error_names(sources), Templates(sources)
    for source in sources:
        about = (ast.get_docstring(source.tree) or "").split("\n\n")[0]
        file = source.path.relative_to(ROOT).as_posix()
        for call in raising(source, names):
            for template in read.of(call.args[0], source):
                yield template, Site(_NAMES.get(called(call), called(call)), file, " ".join(about.split()))


def raising(source: Source, names: set[str]) -> list[ast.Call]:
    """Where an error is made, or a warning given, from top to bottom."""
    calls = [call for name in (*names, "warn") for call in source.calls.get(name, ()) if call.args]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _error_names(sources: tuple[Source, ...]) -> set[str]:
    """The errors of ``kdplug.errors``, and those that are derived from them elsewhere."""
    names = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, KdplugError)}
    classes = [node for source in sources for node in source.classes]
    bases = {node.name: {re.sub(r".*\.", "", ast.unparse(base)) for base in node.bases} for node in classes}
    while more := {name for name, above in bases.items() if above & names} - names:
        names |= more
    return names
