"""CPU time of ``import kdplug`` beyond ``import importlib_metadata``, with few and with many plugins installed.

    python tests/benchmarks/import_time.py [--distributions 300] [--entries 10] [--repeat 9]

Each figure is the smallest of several new interpreters. Of 300 fake distributions 30 offer targets that do not exist, and 20
names are offered by two of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_install import write_distribution

IMPORT = """
import importlib_metadata, time
start = time.process_time()
import kdplug
print(time.process_time() - start, sum(len(r) for r in (kdplug.losses, kdplug.projections, kdplug.tasks)))
"""


class Measured(NamedTuple):
    """The smallest CPU time of a script, and the number of names that it printed with it."""

    seconds: float
    names: int


def cpu_seconds(repeat: int, *scripts: tuple[str, Path]) -> list[Measured]:
    """Run each script with its folder on the path, by turns, in ``repeat`` new interpreters."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KDPLUG_")}
    found: list[list[Measured]] = [[] for _ in scripts]
    for _ in range(repeat):
        for (script, folder), measured in zip(scripts, found, strict=True):
            environment["PYTHONPATH"] = str(folder)
            done = subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
            )
            seconds, names = done.stdout.split()
            measured.append(Measured(float(seconds), int(names)))
    return [min(measured) for measured in found]


def fill(folder: Path, distributions: int, entries: int) -> None:
    """Write ``distributions`` plugins with ``entries`` entries each."""
    for number in range(distributions):
        module = "no_such_module" if number < distributions // 10 else f"fake_{number:03}"
        shared = [(f"both_{number // 2}", f"{module}:f")] if number < 40 else []
        losses = [(f"loss_{number}_{k}", f"{module}:f{k}") for k in range(entries - len(shared))]
        write_distribution(folder, f"kdplug-fake-{number:03}", "1.0", {"losses": [*shared, *losses]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distributions", type=int, default=300)
    parser.add_argument("--entries", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        none, some = Path(folder) / "none", Path(folder) / "some"
        fill(some, given.distributions, given.entries)
        without, with_them = cpu_seconds(given.repeat, (IMPORT, none), (IMPORT, some))
    print(f"this environment: {1e3 * without.seconds:.0f} ms, {without.names} names")
    print(f"with {given.distributions} more distributions: {1e3 * with_them.seconds:.0f} ms, {with_them.names} names")


if __name__ == "__main__":
    main()
