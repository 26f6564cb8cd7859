"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kdplug.cli.app import app

Kdplug = Callable[..., Result]


@pytest.fixture
def kdplug() -> Kdplug:
    """Calls ``kdplug`` with the given words."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
