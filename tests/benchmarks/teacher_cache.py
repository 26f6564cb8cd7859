"""What a teacher cache saves: epochs of ``kdplug.GeneralDistiller`` without one and with one, and what arithmetic predicts.

    python tests/benchmarks/teacher_cache.py [--rounds 5] [--epochs 3] [--examples 512] [--teacher 384x12] [--student 128x4]

Teacher and student are transformer encoders over random tokens; logits and two hidden layers are distilled. Each round trains
without a cache, with a cold one in memory, with a cold one on disk, and with a warm one on disk, in turns, in one process;
times are CPU times of this process, and a figure is the median over rounds. The arithmetic takes two measured times, those
of one epoch without a cache (``E``) and of the teacher's forward passes over the data (``T``): ``n`` epochs take ``n E``
without a cache, ``n (E - T) + T`` with a cold one and ``n (E - T)`` with a warm one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache.summary import CacheSummary

VOCABULARY, LENGTH, CLASSES, BATCH = 1000, 64, 9, 32


class Encoder(nn.Module):
    """A transformer encoder that returns token logits and every hidden state."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        hidden = [self.embeddings(tokens)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return {"logits": self.head(hidden[-1]), "hidden": hidden}


def encoder(size: str) -> Encoder:
    width, _, depth = size.partition("x")
    return Encoder(int(width), int(depth))


def matches(teacher: str, student: str) -> list[dict[str, Any]]:
    deep, shallow = int(teacher.partition("x")[2]), int(student.partition("x")[2])
    proj = ["linear", int(student.partition("x")[0]), int(teacher.partition("x")[0])]
    return [
        {"layer_T": above, "layer_S": below, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": proj}
        for above, below in ((deep // 2, shallow // 2), (deep, shallow))
    ]


def train(
    options: argparse.Namespace, teacher: nn.Module, data: TensorDataset, folder: str | None, *, caching: bool
) -> tuple[float, CacheSummary | None]:
    """Seconds of a whole run, and what its cache holds."""
    torch.manual_seed(0)
    student = encoder(options.student)
    with tempfile.TemporaryDirectory() as output_dir:
        distiller = GeneralDistiller(
            TrainingConfig(output_dir=output_dir, device="cpu", ckpt_frequency=0, teacher_cache=folder),
            DistillationConfig(
                is_caching_logits=caching, intermediate_matches=matches(options.teacher, options.student)
            ),
            teacher,
            student,
            show_progress=False,
        )
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
        start = time.process_time()
        distiller.train(optimizer, DataLoader(data, BATCH, shuffle=True), num_epochs=options.epochs)
        seconds = time.process_time() - start
    return seconds, distiller.teacher_cache and distiller.teacher_cache.summary


def teacher_alone(teacher: nn.Module, data: TensorDataset) -> float:
    """Seconds of the teacher's forward passes over the data."""
    start = time.process_time()
    with torch.no_grad():
        for (tokens,) in DataLoader(data, BATCH):
            teacher(tokens)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--teacher", default="384x12")
    parser.add_argument("--student", default="128x4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    teacher = encoder(options.teacher).eval()
    data = TensorDataset(torch.randint(VOCABULARY, (options.examples, LENGTH)))
    times: dict[str, list[float]] = {}
    summaries: list[CacheSummary] = []

    def note(name: str, measured: Callable[[], Any]) -> None:
        found = measured()
        seconds, summary = found if isinstance(found, tuple) else (found, None)
        times.setdefault(name, []).append(seconds)
        if summary is not None:
            summaries.append(summary)

    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            disk = str(Path(folder) / "cache")
            note("teacher", lambda: teacher_alone(teacher, data))
            note("without", lambda: train(options, teacher, data, None, caching=False))
            note("memory, cold", lambda: train(options, teacher, data, None, caching=True))
            note("disk, cold", lambda disk=disk: train(options, teacher, data, disk, caching=True))  # type: ignore[misc]
            note("disk, warm", lambda disk=disk: train(options, teacher, data, disk, caching=True))  # type: ignore[misc]
    report(options.epochs, {name: statistics.median(found) for name, found in times.items()}, summaries[0])


def report(epochs: int, seconds: dict[str, float], summary: CacheSummary) -> None:
    once, asked = seconds["without"] / epochs, seconds["teacher"]
    cold, warm = epochs * (once - asked) + asked, epochs * (once - asked)
    print(f"{epochs} epochs; one takes {once:.2f} s, of which the teacher {asked:.2f} s")
    print(f"kept: {summary.bytes_per_example:,.0f} bytes per example, {summary.bytes / 1e6:,.1f} MB")
    print(f"{'':14} {'seconds':>8} {'predicted':>10} {'measured/predicted':>19} {'speed-up':>9} {'predicted':>10}")
    whole = seconds["without"]
    for name, predicted in (("without", whole), ("memory, cold", cold), ("disk, cold", cold), ("disk, warm", warm)):
        took = seconds[name]
        print(
            f"{name:14} {took:8.2f} {predicted:10.2f} {took / predicted:19.3f} {whole / took:9.2f} {whole / predicted:10.2f}"
        )


if __name__ == "__main__":
    main()
