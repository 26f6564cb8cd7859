"""No weights to tune: one config with a share, against the tuned weight of each loss.

    python tests/benchmarks/shares.py RESULTS.jsonl [--seeds 5] [--steps 400] [--only LOSS ...]

For each pair of models and each loss, a student learns from labels (weight 1) and from the loss: once with
``weight: {share: 0.5}``, the same for all, and with each weight of a grid. The tuned weight is the best on the validation part, over
tuning seeds of its own; both are then compared on the test part, over other seeds. Each cell is a line of RESULTS.jsonl: an interrupted
run continues there. Prints, for each loss and pair, both means, the paired difference and its 95 % t interval; a loss is a miss if the
whole interval is below 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter
from scipy.stats import t
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import kdplug

LOGITS = (
    "kl",
    "adaptive_kl",
    "reverse_kl",
    "jsd",
    "tvd",
    "skew_kl",
    "alpha_beta",
    "dkd",
    "dist",
    "nkd",
    "mse",
    "ranking",
)
FEATURES = ("hidden_mse", "cos", "pkd")
GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
TUNING_SEEDS = (101, 102)
REQUIRED = {"dkd": {"alpha": 1, "beta": 8}, "dist": {"beta": 1, "gamma": 1}, "alpha_beta": {"alpha": 0.5, "beta": 0.5}}
TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
"""The digits of MNIST-1D (Greydanus 2020, arXiv:2011.14439)."""


def resampled(x, count):
    return interp1d(numpy.linspace(0, 1, len(x)), x)(numpy.linspace(0, 1, count))


def mnist1d(count=5000, seed=42):
    """MNIST-1D by its published procedure: padded, scaled, shifted, noisy and sheared templates of 40 numbers."""
    draw = numpy.random.RandomState(seed)
    shapes = numpy.array(TEMPLATES)
    shapes = (shapes - shapes.mean(1, keepdims=True)) / shapes.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    rows, labels = [], []
    for label, _ in product(range(10), range(count // 10)):
        x = resampled(numpy.concatenate([shapes[label] + 1e-8, numpy.zeros(36 + int(draw.rand() * 25))]), 72)
        x = numpy.roll(x * (1 + 0.4 * (draw.rand() - 0.5)), draw.choice(48))
        x = numpy.where(x != 0, x, gaussian_filter(0.25 * draw.randn(72), 2)) + 0.02 * draw.randn(72)
        x = x - 0.75 * (draw.rand() - 0.5) * numpy.linspace(-0.5, 0.5, 72)
        rows.append(resampled(x, 40))
        labels.append(label)
    order = draw.permutation(count)
    x = numpy.stack(rows)[order]
    return (x - x.mean()) / x.std(), numpy.array(labels)[order]


def digits():
    found = load_digits()
    order = numpy.random.RandomState(0).permutation(len(found.target))
    return (found.data / 16)[order], found.target[order]


class Mlp(nn.Module):
    """A hidden layer, read as one position."""

    def __init__(self, inputs, width):
        super().__init__()
        self.inner, self.head = nn.Linear(inputs, width), nn.Linear(width, 10)

    def forward(self, x, y=None):
        hidden = torch.relu(self.inner(x))
        return self._outputs(self.head(hidden), hidden[:, None], y)

    @staticmethod
    def _outputs(logits, hidden, y):
        losses = functional.cross_entropy(logits, y, reduction="none")
        return {"logits": logits, "labels": y, "hidden": [hidden], "losses": losses}


class Cnn(Mlp):
    """Two convolutions over the numbers of a row, and their mean."""

    def __init__(self, inputs, width):
        super().__init__(inputs, width)
        self.inner = nn.Sequential(
            nn.Conv1d(1, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )

    def forward(self, x, y=None):
        hidden = self.inner(x[:, None]).mean(2)
        return self._outputs(self.head(hidden), hidden[:, None], y)


PAIRS = {
    "digits, MLP": (digits, (Mlp, 256), (Mlp, 8)),
    "digits, CNN": (digits, (Cnn, 64), (Cnn, 8)),
    "MNIST-1D, MLP": (mnist1d, (Cnn, 64), (Mlp, 32)),
    "MNIST-1D, CNN": (mnist1d, (Cnn, 64), (Cnn, 8)),
}


def prepared(pair, steps):
    """Return the data in parts, the trained teacher, and a maker of students."""
    data, (teacher_class, width), student = PAIRS[pair]
    x, y = (torch.as_tensor(one) for one in data())
    x, y = x.float(), y.long()
    ends = [0, *(int(len(y) * share) for share in (0.6, 0.8)), len(y)]
    train, validation, test = (TensorDataset(x[a:b], y[a:b]) for a, b in pairwise(ends))
    torch.manual_seed(0)
    teacher = teacher_class(x.shape[1], width)
    fit(teacher, train, 4 * steps, seed=0)
    parts = SimpleNamespace(train=train, validation=validation, test=test)
    return parts, teacher, lambda: student[0](x.shape[1], student[1]), (student[1], width)


def loader(data, seed):
    return DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed))


def fit(model, data, steps, seed):
    trainer = kdplug.BasicTrainer(training(seed), model, lambda _, outputs: outputs, show_progress=False)
    trainer.train(torch.optim.AdamW(model.parameters(), lr=3e-3), loader(data, seed), num_steps=steps)


def training(seed):
    return kdplug.TrainingConfig(output_dir=tempfile.mkdtemp(), device="cpu", seed=seed, ckpt_steps=10**6)


def cell(scene, loss, weight, seed, steps, part):
    """Return the accuracy of one student."""
    parts, teacher, student, widths = scene
    torch.manual_seed(seed)
    model = student()
    term = {"loss": {"name": loss, **REQUIRED.get(loss, {})}, "weight": weight}
    if loss in FEATURES:
        term |= {"feature": "hidden", "layer_S": 0, "layer_T": 0, "proj": ["linear", *widths]}
    config = kdplug.DistillationConfig(temperature=2, terms=[term], hard_label_weight=1)
    distiller = kdplug.GeneralDistiller(training(seed), config, teacher, model, show_progress=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    distiller.train(optimizer, loader(parts.train, seed), num_steps=steps)
    x, y = getattr(parts, part).tensors
    with torch.no_grad():
        return float((model.eval()(x, y)["logits"].argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", default=[*LOGITS, *FEATURES])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    asked = parser.parse_args()
    lines = asked.results.read_text().splitlines() if asked.results.is_file() else []
    done = {tuple(key): value for key, value in map(json.loads, lines)}
    for pair in asked.pairs:
        scene = None

        def found(*key):
            nonlocal scene
            if (pair, asked.steps, *key) not in done:  # noqa: B023
                scene = scene or prepared(pair, asked.steps)  # noqa: B023
                loss, weight, seed, part = key
                value = cell(scene, loss, {"share": 0.5} if weight == "share" else weight, seed, asked.steps, part)
                done[pair, asked.steps, *key] = value  # noqa: B023
                with asked.results.open("a") as file:
                    file.write(json.dumps([[pair, asked.steps, *key], value]) + "\n")  # noqa: B023
            return done[pair, asked.steps, *key]  # noqa: B023

        for loss in asked.only:
            tuned = max(GRID, key=lambda w: sum(found(loss, w, seed, "validation") for seed in TUNING_SEEDS))
            first = [found(loss, "share", seed, "test") for seed in range(asked.seeds)]
            second = [found(loss, tuned, seed, "test") for seed in range(asked.seeds)]
            gaps = numpy.subtract(first, second)
            half = t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
            verdict = "miss" if gaps.mean() + half < 0 else "within noise or better"
            print(
                f"{pair} | {loss} | share {numpy.mean(first):.4f} | weight {tuned:g}: {numpy.mean(second):.4f} | "
                f"{gaps.mean():+.4f} ± {half:.4f} | {verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
