"""Registries that see nothing unless given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kdplug.host.active import isolated
from kdplug.host.host import Host


@pytest.fixture
def isolated_plugins() -> Iterator[Host]:
    """For one test, registries that see no installed plugin, whatever the machine has.

    What the test gives them, by ``plugin_site`` or ``@kdplug.losses.register``, they see, and it is gone after the test.
    Import the fixture in a ``conftest.py`` (``from kdplug.testing import isolated_plugins``), or name this module in one:
    ``pytest_plugins = ["kdplug.testing.isolation"]``.
    """
    with isolated() as host:
        yield host
