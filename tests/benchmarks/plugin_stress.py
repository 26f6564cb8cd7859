"""What hundreds of installed plugins add to the CPU time of ``import kdplug``.

    python tests/benchmarks/plugin_stress.py [--repeat 9] [--budget 1.0]

300 fake distributions offer 3,000 entries; of these 30 cannot be imported, 20 have a name that another package has too, and
10 are stale: an editable project whose source no longer declares them. The budget is a ratio, so that it does not depend on
the machine: what the distributions add to ``import kdplug``, divided by what they add to reading the name and the entry
points of every distribution with ``importlib_metadata``. The exit status is 1 above it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.import_time import IMPORT, cpu_seconds
from fake_install import write_distribution

DISTRIBUTIONS, ENTRIES, BROKEN, AMBIGUOUS, STALE = 300, 3000, 30, 20, 10

_READ = """
import importlib_metadata, time
start = time.process_time()
entries = [entry for dist in importlib_metadata.distributions() if dist.name for entry in dist.entry_points]
print(time.process_time() - start, len(entries))
"""

_SOURCE = "def f(student_logits, teacher_logits):\n    'A loss.'\n    return ((student_logits - teacher_logits) ** 2).mean()\n"


def fill(folder: Path, projects: Path) -> None:
    """Install the plugins into ``folder``; the projects of the stale ones go into ``projects``.

    ``kdplug-fake-000`` to ``029`` have an entry ``broken_N``, ``030`` to ``049`` in pairs an entry ``both_K``, ``050`` to
    ``059`` an entry ``stale_N``; all other entries, ``loss_N_K``, are in order, each module its own.
    """
    per = ENTRIES // DISTRIBUTIONS
    for number in range(DISTRIBUTIONS):
        name, module = f"kdplug-fake-{number:03}", f"fake_{number:03}"
        first = _odd_one(number, module)
        losses = [*first, *((f"loss_{number}_{k}", f"{module}:f") for k in range(per - len(first)))]
        stale = any(entry.startswith("stale_") for entry, _ in first)
        url = _project(projects / name, name, losses[1:]) if stale else None
        write_distribution(folder, name, "1.0", {"losses": losses}, {f"{module}.py": _SOURCE}, url)


def _odd_one(number: int, module: str) -> list[tuple[str, str]]:
    if number < BROKEN:
        return [(f"broken_{number}", "no_such_module:f")]
    if number < BROKEN + AMBIGUOUS:
        return [(f"both_{number // 2}", f"{module}:f")]
    if number < BROKEN + AMBIGUOUS + STALE:
        return [(f"stale_{number}", f"{module}:f")]
    return []


def _project(folder: Path, name: str, losses: list[tuple[str, str]]) -> dict[str, object]:
    """The source of an editable distribution, which declares ``losses``; the record of its installation."""
    folder.mkdir(parents=True)
    points = "\n".join(f'{entry} = "{target}"' for entry, target in losses)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\n[project.entry-points."kdplug.losses"]\n{points}\n'
    )
    return {"url": folder.as_uri(), "dir_info": {"editable": True}}


def main() -> int:
    """Print all figures; say whether the ratio is within the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--budget", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        none, site = Path(folder) / "none", Path(folder) / "site"
        site.mkdir()
        fill(site, Path(folder) / "projects")
        scripts = [(script, place) for script in (IMPORT, _READ) for place in (none, site)]
        without, with_them, read_without, read_with = cpu_seconds(given.repeat, *scripts)
    added, read = with_them.seconds - without.seconds, read_with.seconds - read_without.seconds
    print(f"this environment: {1e3 * without.seconds:.0f} ms, {without.names} names")
    print(f"with {DISTRIBUTIONS} more distributions: {1e3 * with_them.seconds:.0f} ms, {with_them.names} names")
    print(f"they add {1e3 * added:.0f} ms to the import and {1e3 * read:.0f} ms to reading their entry points")
    print(f"ratio {added / read:.2f}, budget {given.budget:.2f}")
    return int(added > given.budget * read)


if __name__ == "__main__":
    sys.exit(main())
