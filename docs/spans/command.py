"""Reference of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from kdplug.cli.app import app
from spans.prose import cell


def commands() -> str:
    """Return every command with its help and parameters, read from the command objects."""
    return "\n\n".join(_sections(get_command(app), "kdplug"))


def _sections(command: Any, path: str) -> Iterator[str]:
    below = getattr(command, "commands", {})
    rows = [f"| `{name}` | {cell(text)} |" for name, text in map(_row, command.params) if text]
    yield f"## `{path}`"
    yield " ".join((command.help or "").split())
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows])
    for name, one in below.items():
        yield from _sections(one, f"{path} {name}")


def _row(parameter: Any) -> tuple[str, str]:
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    return f"{name}{metavar}", getattr(parameter, "help", None) or ""
