"""``examples/kdplug-steplog``: a plugin with hooks, built, installed, told of a recipe's run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "examples" / "kdplug-steplog"
KDPLUG = "import sys; from kdplug.cli.app import main; sys.exit(main())"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed plugin and nothing else, from a wheel that was built without network."""
    folder, site = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("site")
    source = shutil.copytree(SOURCE, folder / SOURCE.name, ignore=shutil.ignore_patterns("dist", "__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel, cwd=folder)
    return site


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    words = ("-q", "-W", "error", "-p", "no:cacheprovider", "-c", SOURCE / "pyproject.toml", SOURCE / "tests")
    assert " passed" in run("-m", "pytest", *words, cwd=tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")


def test_nothing_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    shown = run("-c", KDPLUG, "plugins", "check", "kdplug-steplog", cwd=tmp_path, PYTHONPATH=str(site))
    assert shown.endswith("no problems\n")


def test_it_writes_every_step_of_a_recipe_next_to_its_log(site: Path, tmp_path: Path) -> None:
    changes = ("training.num_epochs=1", "task.teacher_epochs=1", "task.labels_per_class=4")
    settings = [word for change in changes for word in ("--set", change)]
    words = ("run", ROOT / "examples" / "digits.yaml", "--output-dir", tmp_path / "run", *settings)
    run("-c", KDPLUG, *words, cwd=tmp_path, PYTHONPATH=str(site))
    rows = [json.loads(line) for line in (tmp_path / "run" / "student" / "steplog.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 20))
    assert set(rows[0]) == {"step", "progress", "total", "kd_loss", "hard_label_loss", "feature_map"}
    assert rows[-1]["total"] < rows[0]["total"]


def test_the_switch_leaves_it_out(site: Path, tmp_path: Path) -> None:
    shown = run("-c", KDPLUG, "plugins", "list", cwd=tmp_path, PYTHONPATH=str(site), KDPLUG_PLUGINS="-kdplug-steplog")
    assert "steplog" not in shown.split("kdplug-steplog is disabled")[0]
