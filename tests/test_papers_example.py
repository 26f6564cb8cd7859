"""``examples/kdplug-papers``: published methods as a third-party plugin, built, installed, and held to its own tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_package import ROOT, check_installation, check_tests_pass, install

SOURCE = ROOT / "examples" / "kdplug-papers"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(SOURCE, tmp_path_factory.mktemp("papers"))


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    check_tests_pass(SOURCE, site, tmp_path)


def test_nothing_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    check_installation("kdplug-papers", site, tmp_path)
