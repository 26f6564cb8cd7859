"""What one cell of ``sst2.py`` does: fit a teacher, or train and measure a student; and the comparison of times."""

from __future__ import annotations

import copy
import logging
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from sst2_contender import LIBRARIES, Clock, Run, adaptor
from sst2_grid import Cell, Grid
from sst2_scene import encoder_folder
from torch import nn

import kdplug

TEACHER_LR = 1e-4
STEPS = 16
"""Of a round in which times are compared, the first and the last not counted."""


def work(order: tuple[Grid, Cell]) -> tuple[Cell, dict[str, Any]]:
    """One cell, in the process that is made for it."""
    grid, cell = order
    torch.set_num_threads(1)
    with quiet():
        found = (train_student if cell.layers else fit_teacher)(grid, cell)
    return cell, found


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
        "weights": fingerprint(student),
    }


Rounds = dict[str, list[tuple[float, float]]]
"""For each library, round by round: CPU seconds of a step, and the fingerprint of the student at the end."""


def compare_times(grid: Grid, seed: int, layers: int, loss: str, rounds: int) -> Rounds:
    """The same steps through each library, in turns; each round has a fresh student and batches of its own."""
    scene = grid.scene
    task = scene.task(scene.teacher_folder(seed), layers=layers, eager=loss == "kd+matches")
    batches = scene.training_batches(task, seed, 1)
    teacher, student = models(task)
    times: Rounds = {library: [] for library in LIBRARIES}
    for place in range(rounds):
        part = batches[place * STEPS : (place + 1) * STEPS]
        for library in LIBRARIES:
            loader = Clock(part)
            with tempfile.TemporaryDirectory() as out, quiet():
                run = Run(grid.settings, layers, seed, out)
                own = copy.deepcopy(student)
                run.distil(library, own, teacher, loader, loss)
            seconds = (loader.asked[-1] - loader.asked[1]) / (STEPS - 2)
            times[library].append((seconds, fingerprint(own)))
    return times


def models(task: Any) -> tuple[nn.Module, nn.Module]:
    """The teacher, and a student that starts from it."""
    teacher, student = task.build_teacher(), task.build_student()
    task.start_student(student, teacher)
    return teacher, student


def fingerprint(model: nn.Module) -> float:
    """The sum of all absolute weights in float64, whose last digits tell two models apart that differ anywhere."""
    return float(sum(weight.detach().double().abs().sum() for weight in model.parameters()))


@contextmanager
def quiet() -> Iterator[None]:
    """Progress and warnings go nowhere."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield
