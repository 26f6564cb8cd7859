"""One tiny distillation, run through TextBrewer from PyPI or through the drop-in, with all that can be seen of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

CLASSES, LENGTH, BATCH = 3, 6, 4


class TinyEncoder(nn.Module):
    """Embedding and two layers with two heads and dropout; returns logits of both kinds, hidden states and scores."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.query, self.mix = (nn.ModuleList(nn.Linear(width, width) for _ in range(2)) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.whole, self.token = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, tags: Tensor, scale: float = 1.0
    ) -> Any:
        hidden, scores = [self.embedding(input_ids) * scale], []
        for query, mix in zip(self.query, self.mix, strict=True):
            states = hidden[-1]
            heads = query(states).unflatten(-1, (2, -1)).transpose(1, 2)
            scores.append(heads @ heads.transpose(-1, -2))
            mixed = scores[-1].mean(1).masked_fill(attention_mask[:, None] == 0, -1e4).softmax(-1) @ states
            hidden.append(self.dropout(torch.tanh(mix(mixed + states))))
        whole, token = self.whole(hidden[-1].mean(1)), self.token(hidden[-1])
        loss = nn.functional.cross_entropy(whole, labels, reduction="none")
        return {"whole": whole, "token": token, "hidden": hidden, "attention": scores, "losses": loss}


def adaptor(batch: Any, outputs: Any, keys: str) -> dict[str, Any]:
    """What ``keys`` names, of a batch and a model's outputs; ``heads`` are two of them."""
    mask, labels, tags = batch["attention_mask"], batch["labels"], batch["tags"]
    everything = {
        "whole": {"logits": outputs["whole"]},
        "token": {"logits": outputs["token"]},
        "heads": {"logits": (outputs["whole"], outputs["token"])},
        "logits_mask": {"logits_mask": mask},
        "head_masks": {"logits_mask": [mask, mask]},
        "labels": {"labels": labels},
        "tags": {"labels": tags},
        "losses": {"losses": outputs["losses"]},
        "inputs_mask": {"inputs_mask": mask},
        "hidden": {"hidden": outputs["hidden"]},
        "attention": {"attention": outputs["attention"]},
    }
    return {name: value for key in keys.split() for name, value in everything[key].items()}


def make_examples(count: int, *, is_full: bool, seed: int = 3) -> list[dict[str, Tensor]]:
    """Token ids, masks with at least two valid tokens, labels, and tags of which some are negative."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(LENGTH if is_full else 2, LENGTH + 1, (count,), generator=draw)
    return [
        {
            "input_ids": torch.randint(20, (LENGTH,), generator=draw),
            "attention_mask": (torch.arange(LENGTH) < length).long(),
            "labels": torch.randint(CLASSES, (), generator=draw),
            "tags": torch.randint(-1, CLASSES, (LENGTH,), generator=draw),
        }
        for length in lengths
    ]


@dataclass
class Case:
    """What one distillation differs in. ``train`` are arguments of ``train()``, ``training`` those of its config."""

    distiller: str = "Basic"
    keys: str = "whole"
    config: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=lambda: {"num_steps": 50})
    training: dict[str, Any] = field(default_factory=dict)
    widths: tuple[int, int] = (6, 8)
    batches: int = 7
    is_full: bool = False
    in_context: bool = True
    change: Callable[[Any], Any] | None = None
    optimizer: Callable[..., Any] = field(default=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-3))
    rounds: int = 1


@dataclass
class Trace:
    """What was seen: scalars by tag and step, callbacks, checkpoints, final weights, and draws of every generator
    after."""

    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    callbacks: list[tuple[int, bool]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    draws: tuple[float, ...] = ()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """As TensorBoard's writer."""
        self.scalars.append((tag, value, step))

    def callback(self, model: nn.Module, step: int) -> None:
        """As a script's evaluation: it leaves the model in eval mode, and draws."""
        self.callbacks.append((step, model.training))
        model.eval()
        torch.rand(1)


def run(library: ModuleType, case: Case, folder: Path) -> Trace:
    """Distil through ``library`` from fixed seeds and say what was seen."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    trace, student = Trace(), TinyEncoder(case.widths[0])
    config = library.TrainingConfig(output_dir=str(folder), device="cpu", **{"ckpt_steps": 20, **case.training})
    distiller = _distiller(library, case, config, student)
    distiller.tb_writer = trace
    optimizer = case.optimizer(student.parameters())
    for _ in range(case.rounds):
        train = partial(
            distiller.train, optimizer, _data(case), callback=trace.callback, **_changed(case), **case.train
        )
        if case.in_context:
            with distiller:
                train()
        else:
            train()
    trace.weights = dict(student.state_dict())
    trace.checkpoints = sorted(path.name for path in folder.iterdir())
    trace.draws = (float(torch.rand(())), float(np.random.rand()), random.random())  # noqa: NPY002
    return trace


def _distiller(library: ModuleType, case: Case, config: Any, student: nn.Module) -> Any:
    read = partial(adaptor, keys=case.keys)
    if case.distiller == "Train":
        return library.BasicTrainer(config, student, read)
    teachers = [TinyEncoder(case.widths[1]) for _ in range(3)]
    distillation = library.DistillationConfig(**case.config)
    if case.distiller == "MultiTeacher":
        return library.MultiTeacherDistiller(config, distillation, teachers, student, [read] * 3, read)
    if case.distiller == "MultiTask":
        tasks = dict(zip("abc", teachers, strict=True))
        reads = dict.fromkeys(tasks, read)
        return library.MultiTaskDistiller(config, distillation, tasks, student, reads, reads)
    return library.Distillers[case.distiller](config, distillation, teachers[0], student, read, read)


def _data(case: Case) -> Any:
    loaders = [
        DataLoader(make_examples(BATCH * count, is_full=case.is_full, seed=count), batch_size=BATCH, shuffle=True)
        for count in (case.batches, 3, 2)
    ]
    return dict(zip("abc", loaders, strict=True)) if case.distiller == "MultiTask" else loaders[0]


def _changed(case: Case) -> dict[str, Any]:
    if case.change is None:
        return {}
    if case.distiller == "MultiTask":
        return {"batch_postprocessors": dict.fromkeys("abc", case.change)}
    return {"batch_postprocessor": case.change}


def loss_gap(ours: Trace, theirs: Trace) -> float:
    """The largest difference between two scalars of the same tag and step."""
    return max(abs(a[1] - b[1]) for a, b in zip(ours.scalars, theirs.scalars, strict=True))


def weight_gap(ours: Trace, theirs: Trace) -> float:
    """The largest difference between two weights at the end."""
    return max(float((ours.weights[name] - theirs.weights[name]).abs().max()) for name in theirs.weights)
