"""What the fingerprint of data costs: seconds for a million rows of text classification data, and their share of a short run.

    python tests/benchmarks/data_fingerprint.py [--rows 1000000] [--steps 100]

Three ways to hold the same rows: columns of text as the tasks of ``kdplug-tasks`` read them, token ids in a ``TensorDataset``, and a
dataset of one's own that makes an example when it is asked, which is read by place for a second at most (of wall time; all figures
here are CPU time). For each: seconds, how many rows were covered, and the share of a short run, whose steps are timed on a small BERT (two layers, width 128, 32
examples of 32 tokens, forward and backward). The teacher's fingerprint is timed on the weights of a BERT-base (440 MB).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdplug.engine.checkpoint.fingerprint import CONTENT, data_fingerprint, tensor_fingerprint
from kdplug_tasks.batch import Examples
from kdplug_tasks.data.table import Table
from kdplug_tasks.fingerprint import Identified

LENGTH, BATCH, WIDTH, VOCABULARY = 32, 32, 128, 8000


class Rows(Dataset[dict[str, Any]]):
    """A dataset as people write it: a row becomes ids when it is asked for."""

    def __init__(self, texts: list[str], labels: list[int]) -> None:
        self.texts, self.labels = texts, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, Any]:
        ids = [hash(word) % VOCABULARY for word in self.texts[place].split()]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "label": self.labels[place]}


class Student(nn.Module):
    """A small encoder with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(self.embeddings(ids)).mean(1))
        return logits


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and its result."""
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


def step_seconds() -> float:
    """Seconds of a training step, the least of five."""
    student, ids = Student(), torch.randint(VOCABULARY, (BATCH, LENGTH))

    def step() -> None:
        nn.functional.cross_entropy(student(ids), ids[:, 0] % 2).backward()

    return min(seconds(step)[0] for _ in range(5))


def covered(found: dict[str, Any]) -> int:
    """How many rows a fingerprint is of."""
    content = found.get(CONTENT)
    return max(map(int, content)) if isinstance(content, dict) else found["examples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100, help="of the short run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    texts = [" ".join(draw.choices(words, k=16)) for _ in range(options.rows)]
    labels = [draw.randrange(2) for _ in range(options.rows)]
    table = Table("train.csv", "data.train", {"text": texts, "label": labels})
    ids = torch.randint(VOCABULARY, (options.rows, LENGTH))
    kinds = {
        "columns of a recipe": Identified(Examples(labels), table),
        "TensorDataset": TensorDataset(ids, torch.tensor(labels)),
        "dataset of one's own": Rows(texts, labels),
    }
    run = options.steps * step_seconds()
    print(
        f"{options.rows:,} rows; a run of {options.steps} steps takes {run:.2f} s, one epoch {run / options.steps * options.rows / BATCH:,.0f} s"
    )
    for name, dataset in kinds.items():
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=BATCH, shuffle=True)
        took, found = seconds(lambda loader=loader: data_fingerprint(loader))
        print(f"    {name:22} {took:6.2f} s, {covered(found):>9,} rows covered, {took / (run + took):6.1%} of the run")
    weights = [(str(place), torch.randn(768, 768)) for place in range(187)]
    took, _ = seconds(lambda: tensor_fingerprint(weights))
    print(f"    {'weights of BERT-base':22} {took:6.2f} s")


if __name__ == "__main__":
    main()
