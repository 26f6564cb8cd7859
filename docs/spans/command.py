"""What a command takes."""

from __future__ import annotations

from typing import Any

from typer.main import get_command

from kdplug.cli.app import app
from spans.prose import cell


def help_of(*path: str) -> str:
    """Usage, help and parameters of a command, read from the command and not from its rendered help."""
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    rows = [f"| `{name}` | {cell(text)} |" for name, text in map(_row, command.params) if text]
    rows += [f"| `{name}` | {cell(one.help)} |" for name, one in getattr(command, "commands", {}).items()]
    table = ["| | |", "|---|---|", *rows]
    return "\n\n".join([command.help or "", "\n".join(table)])


def _row(parameter: Any) -> tuple[str, str]:
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    return f"{name}{metavar}", getattr(parameter, "help", None) or ""
