"""What a training step costs beyond its arithmetic: a hand-written loop, ``kdplug``, ``textbrewer``, ``torchdistill``.

    python tests/benchmarks/step_overhead.py [--rounds 7] [--steps 300] [--sizes tiny small medium] [--hard-labels]
        [--only NAME ...]

Every contender trains the same models on the same batches with the same losses, in one process, in turns. A step's time is
read off the loader, which notes when each batch is asked for: set-up and the last checkpoint do not count. Times are CPU
times of all threads, which a busy machine changes little; a figure is the median over blocks of ten steps, and then over
rounds, of which every other one goes the other way round. After ``±`` stands the standard error of the mean over the rounds.
The loop by hand uses ``kdplug.Objective`` and nothing else: no progress, no logging, no checks. The other columns are
differences to it: ``plain`` has the formulas written out instead of an objective; ``kdplug`` runs as it comes, with progress
lines and a logging step in ten; ``textbrewer`` logs every step; ``+tb`` adds TensorBoard files; ``torchdistill`` is its box in the loop of its own example,
which logs one step in ten (see ``torchdistill_loop.py``, and how it does without torchvision), and is left out where it is not
installed. ``--hard-labels`` adds the cross entropy with labels to every contender's loss.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torchdistill_loop
from torch import Tensor, nn
from torch.nn import functional as F

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.objective.objective import Objective

SIZES = {"tiny": (16, 16), "small": (64, 310), "medium": (128, 560)}
"""Batch size and width of the student; the teacher is twice as deep."""

CLASSES = 10
MATCHES = (0, 2, 6)
BLOCK = 10


class Net(nn.Module):
    """An MLP that returns its logits and every hidden state."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        hidden = []
        for layer in self.layers:
            x = layer(x)
            hidden.append(x)
        return self.head(x), hidden


@dataclass(frozen=True)
class Loss:
    """What every contender trains on: the kd loss at temperature 4, so many matches, and labels or none."""

    matches: int
    hard_labels: bool

    @property
    def pairs(self) -> dict[int, int]:
        """The student's layers and the teacher's."""
        return {layer: 2 * layer for layer in range(self.matches)}

    def keys(self) -> dict[str, Any]:
        """The keys that kdplug's config and TextBrewer's have in common."""
        matches = [
            {"layer_T": above, "layer_S": below, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
            for below, above in self.pairs.items()
        ]
        return {"intermediate_matches": matches, "hard_label_weight": int(self.hard_labels)}

    def student(self, batch: Any, outputs: Any) -> dict[str, Any]:
        """The student's adaptor."""
        read = teacher_adaptor(batch, outputs)
        return {**read, "losses": F.cross_entropy(outputs[0], batch[1])} if self.hard_labels else read


def teacher_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs[0], "hidden": outputs[1]}


class Clock:
    """A loader that notes when each batch is asked for."""

    def __init__(self, batches: list[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            self.asked.append(time.process_time())
            yield self.batches[step % len(self.batches)]

    def __len__(self) -> int:
        return self.steps

    def per_step(self) -> float:
        """Seconds of a step: the median over blocks of ten, each with one logging step, without the first block."""
        blocks = [(end - start) / BLOCK for start, end in pairwise(self.asked[BLOCK::BLOCK])]
        return statistics.median(blocks)


def plain(student: nn.Module, teacher: nn.Module, loader: Clock, loss: Loss, folder: str) -> None:
    """No kdplug at all: the formulas written out where they are used."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    teacher.eval()
    student.train()
    for batch in loader:
        with torch.no_grad():
            logits_t, hidden_t = teacher(*batch)
        logits_s, hidden_s = student(*batch)
        total = -((logits_t / 4).softmax(-1) * (logits_s / 4).log_softmax(-1)).sum(-1).mean()
        for below, above in loss.pairs.items():
            total = total + F.mse_loss(hidden_s[below], hidden_t[above])
        if loss.hard_labels:
            total = total + F.cross_entropy(logits_s, batch[1])
        total.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_hand(student: nn.Module, teacher: nn.Module, loader: Clock, loss: Loss, folder: str) -> None:
    objective = Objective(DistillationConfig(**loss.keys()))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    teacher.eval()
    student.train()
    for step, batch in enumerate(loader):
        with torch.no_grad():
            read = teacher_adaptor(batch, teacher(*batch))
        outputs = loss.student(batch, student(*batch))
        report = objective(
            student=outputs, teacher=read, progress=step / loader.steps, step=step, total_steps=loader.steps
        )
        report.total.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_kdplug(
    student: nn.Module, teacher: nn.Module, loader: Clock, loss: Loss, folder: str, *, tensorboard: bool = False
) -> None:
    training = TrainingConfig(output_dir=folder, device="cpu", log_dir=folder if tensorboard else None)
    distillation = DistillationConfig(**loss.keys())
    distiller = GeneralDistiller(training, distillation, teacher, student, teacher_adaptor, loss.student)
    distiller.train(torch.optim.SGD(student.parameters(), lr=1e-3), loader, num_steps=loader.steps)


def by_kdplug_tensorboard(*args: Any) -> None:
    by_kdplug(*args, tensorboard=True)


def by_textbrewer(
    student: nn.Module, teacher: nn.Module, loader: Clock, loss: Loss, folder: str, *, tensorboard: bool = False
) -> None:
    import textbrewer

    training = textbrewer.TrainingConfig(
        output_dir=folder, device="cpu", log_dir=folder if tensorboard else None, ckpt_steps=loader.steps
    )
    distillation = textbrewer.DistillationConfig(**loss.keys())
    distiller = textbrewer.GeneralDistiller(training, distillation, teacher, student, teacher_adaptor, loss.student)
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=1e-3), loader, num_steps=loader.steps)


def by_textbrewer_tensorboard(*args: Any) -> None:
    by_textbrewer(*args, tensorboard=True)


def by_torchdistill(student: nn.Module, teacher: nn.Module, loader: Clock, loss: Loss, folder: str) -> None:
    pairs = {f"layers.{below}": f"layers.{above}" for below, above in loss.pairs.items()}
    torchdistill_loop.train(student, teacher, loader, pairs, hard_labels=loss.hard_labels)


CONTENDERS: dict[str, Callable[..., None]] = {
    "by hand": by_hand,
    "plain": plain,
    "kdplug": by_kdplug,
    "kdplug+tb": by_kdplug_tensorboard,
    "textbrewer": by_textbrewer,
    "textbrewer+tb": by_textbrewer_tensorboard,
    "torchdistill": by_torchdistill,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress goes to a file that nobody reads, as fast as to any other."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        yield


def measure(names: list[str], size: str, loss: Loss, rounds: int, steps: int, folder: str) -> dict[str, list[float]]:
    """Seconds per step of each contender, round by round."""
    batch, width = SIZES[size]
    torch.manual_seed(0)
    teacher, student = Net(width, 12), Net(width, 6)
    batches = [(torch.randn(batch, width), torch.randint(CLASSES, (batch,))) for _ in range(8)]
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            loader, own = Clock(batches, steps), tempfile.mkdtemp(dir=folder)
            with quiet():
                CONTENDERS[name](copy.deepcopy(student), copy.deepcopy(teacher), loader, loss, own)
            times[name].append(loader.per_step())
    return times


def standard_error(values: list[float]) -> float:
    """Of the mean; ``nan`` for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def row(size: str, matches: int, times: dict[str, list[float]]) -> str:
    hand = times["by hand"]
    cells = [f"{size:7s}", f"{matches:7d}", f"{statistics.median(hand) * 1e3:11.3f}"]
    for name in list(times)[1:]:
        extras = [other - base for other, base in zip(times[name], hand, strict=True)]
        extra, error = statistics.median(extras), standard_error(extras)
        ratio = statistics.median(other / base for other, base in zip(times[name], hand, strict=True))
        cells.append(f"{extra * 1e6:+6.0f} ±{error * 1e6:3.0f} µs {ratio:5.3f}x")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of the tiny size; larger sizes take fewer")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--hard-labels", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="beside the loop by hand"
    )
    arguments = parser.parse_args()
    names = ["by hand", *(name for name in arguments.only if name != "by hand")]
    if "torchdistill" in names and (reason := torchdistill_loop.missing()):
        names.remove("torchdistill")
        print(reason)
    torch.set_num_threads(1)
    logging.getLogger("Distillation").setLevel(logging.ERROR)
    head = [f"{'size':7s}", "matches", "by hand, ms", *(f"{name:>20s}" for name in names[1:])]
    print(" | ".join(head))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for size in arguments.sizes:
            steps = max(5 * BLOCK, arguments.steps // {"tiny": 1, "small": 4, "medium": 8}[size])
            for matches in MATCHES:
                loss = Loss(matches, arguments.hard_labels)
                times = measure(names, size, loss, arguments.rounds, steps, folder)
                print(row(size, matches, times), flush=True)


if __name__ == "__main__":
    main()
