"""Build and install an example plugin, and run commands with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KDPLUG = "import sys; from kdplug.cli.app import main; sys.exit(main())"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run Python and return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(source: Path, folder: Path) -> Path:
    """Return a folder that holds the installed plugin and nothing else, from a wheel that was built without network."""
    site = folder / "site"
    copy = shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("dist", "__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel, cwd=folder)
    return site


def check_tests_pass(source: Path, site: Path, folder: Path) -> None:
    """Run the plugin's own tests against the installed copy."""
    words = ("-q", "-W", "error", "-p", "no:cacheprovider", "-c", source / "pyproject.toml", source / "tests")
    assert " passed" in run("-m", "pytest", *words, cwd=folder, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")


def check_installation(name: str, site: Path, folder: Path) -> None:
    """``kdplug plugins check`` finds nothing wrong."""
    shown = run("-c", KDPLUG, "plugins", "check", name, cwd=folder, PYTHONPATH=str(site))
    assert shown.endswith("no problems\n")
