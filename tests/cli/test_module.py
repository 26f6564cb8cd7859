"""``python -m kdplug`` is the ``kdplug`` command."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdplug


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kdplug", *words], capture_output=True, text=True, check=False)


def test_it_prints_the_version():
    assert run("--version").stdout == f"kdplug {kdplug.__version__}\n"


def test_it_lists_the_commands_under_its_own_name():
    shown = run("--help").stdout
    assert "Usage: python -m kdplug " in shown
    assert "plugins" in shown


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [(("run", "missing.yaml"), 2, "there is no file 'missing.yaml'"), (("no-such-command",), 2, "No such command")],
)
def test_its_exit_status_is_that_of_the_command(words, status, says):
    done = run(*words)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
