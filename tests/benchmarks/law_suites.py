"""Time and memory of the laws: the own tests of each project of ``kdplug plugins new`` that are laws of losses, and of
examples/kdplug-myloss, each in a process of its own on one thread, with the import of torch.

    python tests/benchmarks/law_suites.py [--project NAME]

A suite may take 20 seconds of a core and 1 GiB. The exit status is 1 if one takes more, or fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdplug.cli.new_plugin import make_project, write_project
from kdplug.cli.scaffold import FORMS, SCAFFOLDS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kdplug-myloss"
SECONDS, MIB = 20.0, 1024.0
"""Maximum time on one core, and maximum resident memory of the whole process, of one suite."""


class Cost(NamedTuple):
    """What the tests of one project took, and their output."""

    seconds: float
    mib: float
    passed: bool
    output: str

    @property
    def is_within_bounds(self) -> bool:
        return self.passed and self.seconds <= SECONDS and self.mib <= MIB


def projects(folder: Path) -> Iterator[Path]:
    """Write a project for each form of a loss, projection and temperature scheduler, and copy the example."""
    for form in sorted({key for forms in FORMS.values() for key in forms.values()}):
        dist = f"kdplug-{form.replace(' ', '-').replace('_', '-')}-of-mine"
        place = write_project(make_project(dist, SCAFFOLDS[form], "none"), folder)
        _install(place)
        yield place
    place = shutil.copytree(EXAMPLE, folder / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__"))
    _install(place)
    yield place


def _install(place: Path) -> None:
    """Write the metadata of an installed distribution next to the module."""
    project = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    info = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("\n".join(points))


def cost_of(place: Path) -> Cost:
    """Run the tests of the project in a new process, and measure it."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(place)]
    with tempfile.TemporaryFile("w+") as shown:
        child = subprocess.Popen(
            [*command, "-c", str(place / "pyproject.toml"), str(place / "tests")],
            cwd=place,
            env=environment,
            stdout=shown,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        shown.seek(0)
        text = shown.read()
    kib = used.ru_maxrss / 1024 if sys.platform == "darwin" else used.ru_maxrss
    return Cost(used.ru_utime + used.ru_stime, kib / 1024, child.returncode == 0, text)


def main() -> int:
    """Print a line for each project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", help="Measure only projects whose name contains this.")
    given = parser.parse_args()
    is_good = True
    with tempfile.TemporaryDirectory(prefix="kdplug-laws-") as folder:
        for place in projects(Path(folder)):
            if given.project and given.project not in place.name:
                continue
            cost = cost_of(place)
            mark = "" if cost.is_within_bounds else "  <- out of bounds" if cost.passed else "  <- fails"
            print(f"{cost.seconds:6.1f} s {cost.mib:6.0f} MiB  {place.name}{mark}", flush=True)
            if not cost.passed:
                print(cost.output)
            is_good &= cost.is_within_bounds
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
