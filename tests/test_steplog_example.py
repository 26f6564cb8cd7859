"""``examples/kdplug-steplog``: a plugin with hooks, built, installed, told of a recipe's run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_package import KDPLUG, ROOT, check_installation, check_tests_pass, install, run

SOURCE = ROOT / "examples" / "kdplug-steplog"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(SOURCE, tmp_path_factory.mktemp("steplog"))


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    check_tests_pass(SOURCE, site, tmp_path)


def test_nothing_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    check_installation("kdplug-steplog", site, tmp_path)


def test_it_writes_every_step_of_a_recipe_next_to_its_log(site: Path, tmp_path: Path) -> None:
    changes = ("training.num_epochs=1", "task.teacher_epochs=1", "task.labels_per_class=4")
    settings = [word for change in changes for word in ("--set", change)]
    words = ("run", ROOT / "examples" / "digits.yaml", "--output-dir", tmp_path / "run", *settings)
    run("-c", KDPLUG, *words, cwd=tmp_path, PYTHONPATH=str(site))
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "seed-0" / "distilled" / "steplog.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, 33))
    assert set(rows[0]) == {"step", "progress", "total", "kd_loss", "hard_label_loss", "feature_map"}
    assert rows[-1]["total"] < rows[0]["total"]


def test_the_switch_leaves_it_out(site: Path, tmp_path: Path) -> None:
    shown = run("-c", KDPLUG, "plugins", "list", cwd=tmp_path, PYTHONPATH=str(site), KDPLUG_PLUGINS="-kdplug-steplog")
    assert "steplog" not in shown.split("kdplug-steplog is disabled")[0]
