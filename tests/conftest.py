"""Fixtures that every test folder may ask for."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_install import FakeSite

from kdplug.host.active import isolated
from kdplug.host.host import Host

gc.disable()  # while all tests are imported: collections would find nothing and visit everything


def pytest_collection_finish() -> None:
    """Exempt what the imports made from garbage collections. accelerate forces one after each run, which would visit it all."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_switches() -> None:
    """What the caller's shell says about plugins must not reach the tests, nor what it says to this pytest those that it starts."""
    for name in ("KDPLUG_PLUGINS", "KDPLUG_STRICT", "PYTEST_ADDOPTS"):
        os.environ.pop(name, None)


@pytest.fixture
def fake_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """An empty folder on the path for fake distributions; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    site = FakeSite(folder)
    yield site
    site.forget_modules()


@pytest.fixture
def no_plugins() -> Iterator[Host]:
    """Registries without any entry."""
    with isolated() as host:
        yield host
