"""What a training step costs beyond its arithmetic: a hand-written loop, ``kdplug.GeneralDistiller``, ``textbrewer``.

    python tests/benchmarks/step_overhead.py [--rounds 7] [--steps 300] [--sizes tiny small medium]

Every contender trains the same models on the same batches with the same losses, in one process, in turns. A step's time is
read off the loader, which notes when each batch is asked for: set-up and the last checkpoint do not count. Times are CPU
times of all threads, which a busy machine changes little; a figure is the median over blocks of ten steps, and then over
rounds. The loop by hand uses ``kdplug.Objective`` and nothing else: no progress, no logging, no checks. The other columns are
differences to it: ``plain`` has the formulas written out instead of an objective; ``kdplug`` runs as it comes, with progress
lines and a logging step in ten; ``textbrewer`` logs every step; ``+tb`` adds TensorBoard files.
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
from itertools import pairwise
from typing import Any

import torch
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
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            hidden.append(x)
        return self.head(x), hidden


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
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


def intermediate_matches(count: int) -> list[dict[str, Any]]:
    return [
        {"layer_T": 2 * layer, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for layer in range(count)
    ]


def plain(student: nn.Module, teacher: nn.Module, loader: Clock, matches: int, folder: str) -> None:
    """No kdplug at all: the formulas written out where they are used."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    teacher.eval()
    student.train()
    for batch in loader:
        with torch.no_grad():
            logits_t, hidden_t = teacher(*batch)
        logits_s, hidden_s = student(*batch)
        loss = -((logits_t / 4).softmax(-1) * (logits_s / 4).log_softmax(-1)).sum(-1).mean()
        for layer in range(matches):
            loss = loss + F.mse_loss(hidden_s[layer], hidden_t[2 * layer])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_hand(student: nn.Module, teacher: nn.Module, loader: Clock, matches: int, folder: str) -> None:
    objective = Objective(DistillationConfig(intermediate_matches=intermediate_matches(matches)))
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    teacher.eval()
    student.train()
    for step, batch in enumerate(loader):
        with torch.no_grad():
            read = adaptor(batch, teacher(*batch))
        outputs = adaptor(batch, student(*batch))
        loss = objective(
            student=outputs, teacher=read, progress=step / loader.steps, step=step, total_steps=loader.steps
        )
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()


def by_kdplug(
    student: nn.Module, teacher: nn.Module, loader: Clock, matches: int, folder: str, *, tensorboard: bool = False
) -> None:
    training = TrainingConfig(output_dir=folder, device="cpu", log_dir=folder if tensorboard else None)
    distillation = DistillationConfig(intermediate_matches=intermediate_matches(matches))
    distiller = GeneralDistiller(training, distillation, teacher, student, adaptor, adaptor)
    distiller.train(torch.optim.SGD(student.parameters(), lr=1e-3), loader, num_steps=loader.steps)


def by_kdplug_tensorboard(*args: Any) -> None:
    by_kdplug(*args, tensorboard=True)


def by_textbrewer(
    student: nn.Module, teacher: nn.Module, loader: Clock, matches: int, folder: str, *, tensorboard: bool = False
) -> None:
    import textbrewer

    training = textbrewer.TrainingConfig(
        output_dir=folder, device="cpu", log_dir=folder if tensorboard else None, ckpt_steps=loader.steps
    )
    distillation = textbrewer.DistillationConfig(intermediate_matches=intermediate_matches(matches))
    distiller = textbrewer.GeneralDistiller(training, distillation, teacher, student, adaptor, adaptor)
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=1e-3), loader, num_steps=loader.steps)


def by_textbrewer_tensorboard(*args: Any) -> None:
    by_textbrewer(*args, tensorboard=True)


CONTENDERS: dict[str, Callable[..., None]] = {
    "by hand": by_hand,
    "plain": plain,
    "kdplug": by_kdplug,
    "kdplug+tb": by_kdplug_tensorboard,
    "textbrewer": by_textbrewer,
    "textbrewer+tb": by_textbrewer_tensorboard,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress goes to a file that nobody reads, as fast as to any other."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        yield


def measure(size: str, matches: int, rounds: int, steps: int, folder: str) -> dict[str, list[float]]:
    """Seconds per step of each contender, round by round."""
    batch, width = SIZES[size]
    torch.manual_seed(0)
    teacher, student = Net(width, 12), Net(width, 6)
    batches = [(torch.randn(batch, width),) for _ in range(8)]
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, contender in CONTENDERS.items():
            loader = Clock(batches, steps)
            with quiet():
                contender(copy.deepcopy(student), copy.deepcopy(teacher), loader, matches, tempfile.mkdtemp(dir=folder))
            times[name].append(loader.per_step())
    return times


def row(size: str, matches: int, times: dict[str, list[float]]) -> str:
    hand = times["by hand"]
    cells = [f"{size:7s}", f"{matches:7d}", f"{statistics.median(hand) * 1e3:11.3f}"]
    for name in list(CONTENDERS)[1:]:
        extra = statistics.median(other - base for other, base in zip(times[name], hand, strict=True))
        ratio = statistics.median(other / base for other, base in zip(times[name], hand, strict=True))
        cells.append(f"{extra * 1e6:+9.0f} µs {ratio:5.3f}x")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of the tiny size; larger sizes take fewer")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("Distillation").setLevel(logging.ERROR)
    head = [f"{'size':7s}", "matches", "by hand, ms", *(f"{name:>19s}" for name in list(CONTENDERS)[1:])]
    print(" | ".join(head))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for size in arguments.sizes:
            steps = max(5 * BLOCK, arguments.steps // {"tiny": 1, "small": 4, "medium": 8}[size])
            for matches in MATCHES:
                print(row(size, matches, measure(size, matches, arguments.rounds, steps, folder)), flush=True)


if __name__ == "__main__":
    main()
