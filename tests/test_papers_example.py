"""``examples/kdplug-papers``: published methods as a third-party plugin, built, installed, and held to its own tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_package import KDPLUG, ROOT, check_installation, check_tests_pass, install, run

SOURCE = ROOT / "examples" / "kdplug-papers"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(SOURCE, tmp_path_factory.mktemp("papers"))


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    check_tests_pass(SOURCE, site, tmp_path)


def test_nothing_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    check_installation("kdplug-papers", site, tmp_path)


def test_its_recipe_runs(site: Path, tmp_path: Path) -> None:
    changes = ("training.num_epochs=1", "task.teacher_epochs=1", "task.labels_per_class=4")
    settings = [word for change in changes for word in ("--set", change)]
    words = ("run", SOURCE / "recipes" / "digits.yaml", "--output-dir", tmp_path / "run", *settings)
    run("-c", KDPLUG, *words, cwd=tmp_path, PYTHONPATH=str(site))
    record = json.loads((tmp_path / "run" / "kdplug-run.json").read_text())
    names = [
        term["loss"]["name"] if isinstance(term["loss"], dict) else term["loss"]
        for term in record["recipe"]["distillation"]["terms"]
    ]
    assert sum(name.startswith("kdplug-papers:") for name in names) == 11
