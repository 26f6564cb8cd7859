"""``examples/kdplug-papers``: published methods as a third-party plugin, built, installed, and held to its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "examples" / "kdplug-papers"
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
    words = ("-q", "-W", "error", "-c", SOURCE / "pyproject.toml", SOURCE / "tests")
    assert " passed" in run("-m", "pytest", *words, cwd=tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")


def test_nothing_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    shown = run("-c", KDPLUG, "plugins", "check", "kdplug-papers", cwd=tmp_path, PYTHONPATH=str(site))
    assert shown.endswith("no problems\n")
