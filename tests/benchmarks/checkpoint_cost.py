"""What a checkpoint costs: a save and a resume, in training steps and in writes of the same bytes by safetensors alone.

    python tests/benchmarks/checkpoint_cost.py [--rounds 9] [--sizes small large] [--folder FOLDER]

A student is distilled with AdamW by ``kdplug.GeneralDistiller``; every second step saves. A step's time is read off the loader,
which notes when each batch is asked for, and a save is what a step that saves takes beyond its neighbour that does not. After
each save ``safetensors.torch.save_file`` writes the same tensors (weights and both moments) to one file beside it, which is
flushed to disk: so steps, saves and bare writes alternate, on one disk, in one process. A resume is the time from the call of
``train`` to the first step, beyond that of a fresh start; its batches to skip are nothing to read. Times are wall times, since
a disk is waited for; ``CPU`` is the time of all threads of the process. A figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller

SIZES = {"small": (128, 2, 16), "large": (512, 9, 4)}
"""Width, layers and batch size of the student; the teacher is as large."""

VOCABULARY, LENGTH, CLASSES = 4000, 32, 9


class Encoder(nn.Module):
    """A transformer encoder over tokens."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(hidden.mean(1))
        return logits


class Asked:
    """A loader of one batch, again and again, that notes when it is asked for it."""

    def __init__(self, batch: Tensor, steps: int) -> None:
        self.batch, self.steps = batch, steps
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.steps):
            self.note()
            yield self.batch

    def __len__(self) -> int:
        return self.steps

    def note(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


class Started:
    """An observer that notes when a run is about to take its first step."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def run_start(self, run: Any) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step_end(self, run: Any, step: int, report: Any) -> None:
        pass

    def run_end(self, run: Any, error: BaseException | None) -> None:
        pass


class Bare:
    """A callback that writes the student and the optimizer's moments to one file, flushes it, and notes the time taken."""

    def __init__(self, optimizer: AdamW, file: Path) -> None:
        self.optimizer, self.file = optimizer, file
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, *, model: nn.Module, step: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        tensors = dict(model.state_dict())
        for place, state in enumerate(self.optimizer.state.values()):
            tensors |= {f"{place}.{name}": value for name, value in state.items()}
        save_file(tensors, self.file)
        with self.file.open("rb") as handle:
            os.fsync(handle.fileno())
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


class Scene:
    """A teacher, a student and a batch of one size."""

    def __init__(self, size: str, folder: Path) -> None:
        width, depth, batch = SIZES[size]
        torch.manual_seed(0)
        self.teacher, self.student = Encoder(width, depth), Encoder(width, depth)
        self.batch = torch.randint(VOCABULARY, (batch, LENGTH))
        self.folder = folder

    def train(self, steps: int, saves_every: int, **options: Any) -> tuple[Asked, Started, Bare, float, float]:
        loader, started, optimizer = Asked(self.batch, steps), Started(), AdamW(self.student.parameters())
        bare = Bare(optimizer, self.folder / "bare.safetensors")
        distiller = GeneralDistiller(
            TrainingConfig(
                output_dir=str(self.folder / "run"),
                device="cpu",
                ckpt_steps=saves_every,
                keep_last=1,
                logging_steps=10**6,
            ),
            DistillationConfig(),
            self.teacher,
            self.student,
            observers=[started],
            show_progress=False,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        distiller.train(optimizer, loader, num_steps=steps, callback=bare, **options)
        loader.note()
        return loader, started, bare, wall, cpu


def saves(scene: Scene, rounds: int) -> dict[str, list[float]]:
    """Seconds of steps, saves and bare writes, wall and CPU. The first step and the first save warm up."""
    loader, _, bare, _, _ = scene.train(2 * (rounds + 1), 2)
    found: dict[str, list[float]] = {}
    for clock, asked, written in (("wall", loader.wall, bare.wall), ("cpu", loader.cpu, bare.cpu)):
        gaps = [after - before for before, after in pairwise(asked)]
        steps, saving = gaps[2::2], gaps[3::2]
        found[f"step {clock}"] = steps
        found[f"bare {clock}"] = written[1:]
        found[f"save {clock}"] = [
            both - step - alone for both, step, alone in zip(saving, steps, written[1:], strict=True)
        ]
    return found


def resumes(scene: Scene, rounds: int) -> dict[str, list[float]]:
    """Seconds that a start takes longer where it goes on from a checkpoint, fresh starts and resumes in turns."""
    found: dict[str, list[float]] = {"resume wall": [], "resume cpu": []}
    scene.train(1, 1)
    for _ in range(rounds):
        _, started, _, wall, cpu = scene.train(1, 1, resume="auto", resume_changed=True)
        resumed = started.wall - wall, started.cpu - cpu
        _, started, _, wall, cpu = scene.train(1, 1)
        found["resume wall"].append(resumed[0] - (started.wall - wall))
        found["resume cpu"].append(resumed[1] - (started.cpu - cpu))
    return found


def show(size: str, scene: Scene, seconds: dict[str, float]) -> None:
    checkpoint = next((scene.folder / "run").glob("step-*"))
    bytes_of = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    held = sum(parameter.numel() for parameter in scene.student.parameters())
    bare = (scene.folder / "bare.safetensors").stat().st_size
    print(f"{size}: {held / 1e6:.2f} M parameters; checkpoint {sum(bytes_of.values()):,} bytes, bare file {bare:,}")
    for name, count in sorted(bytes_of.items()):
        print(f"    {name:22} {count:>13,}")
    for what in ("save", "resume"):
        wall, cpu = seconds[f"{what} wall"], seconds[f"{what} cpu"]
        steps, writes = wall / seconds["step wall"], wall / seconds["bare wall"]
        print(
            f"    {what:7} {wall * 1e3:8.1f} ms, CPU {cpu * 1e3:8.1f} ms: {steps:6.2f} steps, {writes:5.2f} bare writes"
        )
    for what in ("step", "bare"):
        print(f"    {what:7} {seconds[f'{what} wall'] * 1e3:8.1f} ms, CPU {seconds[f'{what} cpu'] * 1e3:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--folder", help="where to write; the system's temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
            scene = Scene(size, Path(folder))
            found = {**saves(scene, options.rounds), **resumes(scene, options.rounds)}
            show(size, scene, {name: statistics.median(values) for name, values in found.items()})


if __name__ == "__main__":
    main()
