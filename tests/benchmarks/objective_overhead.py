"""What the objective costs per training step over the same losses summed by hand.

    python tests/benchmarks/objective_overhead.py [--rounds 3000] [--json]

One small perceptron on one thread; both variants take turns, in changing order, and the medians of their processor time are compared. The
hand-written variant calls the very functions that the config names, with the same masks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kdplug
from kdplug import DistillationConfig, Objective
from kdplug.host.active import isolated

BATCH, LENGTH, WIDTH, CLASSES = 8, 4, 32, 10
Step = Callable[[], Tensor]


class Perceptron(nn.Module):
    """Three hidden layers over a short sequence, and a head on the mean of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = []
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
            hidden.append(inputs)
        return self.head(inputs.mean(dim=1)), hidden


def ce(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    target = (teacher_logits / temperature).softmax(-1)
    return -(target * (student_logits / temperature).log_softmax(-1)).sum(-1).mean()


def masked_mse(student_features: Tensor, teacher_features: Tensor, mask: Tensor) -> Tensor:
    error = torch.where(mask.unsqueeze(-1), student_features - teacher_features, 0)
    return error.square().mean(-1).sum() / mask.sum()


def config(matches: int) -> DistillationConfig:
    return DistillationConfig(
        kd_loss_type="ce",
        hard_label_weight=0.5,
        intermediate_matches=[
            {"layer_T": i % 3, "layer_S": i % 3, "feature": "hidden", "loss": "masked_mse", "weight": 0.1}
            for i in range(matches)
        ],
    )


def steps(matches: int) -> tuple[Step, Step]:
    """One training step by hand, and one through the objective, on models of their own."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(BATCH, LENGTH, WIDTH), torch.randint(CLASSES, (BATCH,))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    cross_entropy, objective = nn.CrossEntropyLoss(), Objective(config(matches))

    def by_hand(student: Perceptron, teacher: tuple[Tensor, list[Tensor]]) -> Tensor:
        logits, hidden = student(inputs)
        total = ce(logits, teacher[0], 4.0)
        for i in range(matches):
            total = total + 0.1 * masked_mse(hidden[i % 3], teacher[1][i % 3], mask)
        return total + 0.5 * cross_entropy(logits, labels)

    def through_objective(student: Perceptron, teacher: tuple[Tensor, list[Tensor]]) -> Tensor:
        logits, hidden = student(inputs)
        found = {
            "logits": logits,
            "hidden": hidden,
            "losses": cross_entropy(logits, labels),
            "inputs_mask": mask,
        }
        return objective(found, {"logits": teacher[0], "hidden": teacher[1]}, progress=0.5).total

    return _step(by_hand, inputs), _step(through_objective, inputs)


def _step(loss: Callable[[Perceptron, tuple[Tensor, list[Tensor]]], Tensor], inputs: Tensor) -> Step:
    torch.manual_seed(1)
    student, teacher = Perceptron(), Perceptron()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    with torch.no_grad():
        target = teacher(inputs)

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss(student, target)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return total.detach()

    return step


def measure(matches: int, rounds: int) -> dict[str, float]:
    """Median microseconds of both steps, and the median of their paired differences."""
    pair = steps(matches)
    assert torch.allclose(pair[0](), pair[1]())
    for _ in range(200):
        pair[0](), pair[1]()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.thread_time()
            pair[which]()
            times[which].append((time.thread_time() - start) * 1e6)
    hand, ours = (statistics.median(one) for one in times)
    difference = statistics.median(b - a for a, b in zip(*times, strict=True))
    return {
        "matches": matches,
        "by_hand_us": hand,
        "objective_us": ours,
        "overhead_us": difference,
        "ratio": ours / hand,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with isolated():
        kdplug.losses.register("ce")(ce)
        kdplug.losses.register("masked_mse")(masked_mse)
        rows = [measure(matches, arguments.rounds) for matches in (0, 2, 6)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"torch {torch.__version__}, 1 thread, medians over {arguments.rounds} interleaved steps")
    for row in rows:
        print(
            "{matches:.0f} matches: by hand {by_hand_us:.0f} µs, objective {objective_us:.0f} µs, "
            "overhead {overhead_us:+.1f} µs ({ratio:.3f})".format(**row)
        )


if __name__ == "__main__":
    main()
