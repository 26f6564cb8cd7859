"""The commands and flags there are. Growing one is a change of this file."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

import kdplug
from kdplug.cli.app import app


def _flags(command, path="kdplug"):
    """Command to the names of its parameters, for a command and all below it."""
    found = {path: sorted(name for parameter in command.params for name in parameter.opts)}
    for name, below in getattr(command, "commands", {}).items():
        found |= _flags(below, f"{path} {name}")
    return found


def test_the_commands_and_flags_are_these():
    assert _flags(typer.main.get_command(app)) == {
        "kdplug": ["--version"],
        "kdplug run": [
            "--debug",
            "--jobs",
            "--locked",
            "--output-dir",
            "--overwrite",
            "--resume",
            "--resume-changed",
            "--seed",
            "--seeds",
            "--set",
            "recipe",
        ],
        "kdplug plan": ["--debug", "--json", "--set", "recipe"],
        "kdplug verdict": [
            "--aggregate",
            "--arm-a",
            "--arm-b",
            "--confidence",
            "--debug",
            "--json",
            "--lower-is-better",
            "--margin",
            "a",
            "b",
        ],
        "kdplug report": ["--debug", "--out", "runs"],
        "kdplug new": ["--force", "--from", "--task", "--teacher", "recipe"],
        "kdplug schema": ["--kind", "--names"],
        "kdplug cache": [],
        "kdplug cache make": ["--debug", "--out", "--set", "recipe"],
        "kdplug cache show": ["--check", "--json", "folder"],
        "kdplug plugins": [],
        "kdplug plugins new": ["--dir", "--form", "--kind", "--license", "--on", "name"],
        "kdplug plugins check": ["--json", "dist"],
        "kdplug plugins list": ["--json", "--kind", "--load"],
        "kdplug plugins show": ["--kind", "name"],
    }


def test_the_version_is_that_of_the_package():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"kdplug {kdplug.__version__}\n"


def test_every_command_says_what_it_does():
    command = typer.main.get_command(app)
    groups = [command, command.commands["plugins"], command.commands["cache"]]
    assert all(below.help for group in groups for below in group.commands.values())


def _commands(command, words=()):
    """The words of a command, and of all below it."""
    yield list(words)
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


def test_help_shows_no_type_for_a_flag():
    for words in _commands(typer.main.get_command(app)):
        text = CliRunner().invoke(app, [*words, "--help"]).stdout
        assert "--help " in text
        assert "bool" not in text.lower()
