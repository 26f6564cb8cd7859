"""Who trains a student in ``sst2.py``, and on what: on labels alone, or from the teacher through kdplug or TextBrewer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sst2_scene import TEACHER_LAYERS, Batch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import kdplug
from kdplug.recipes.training import factor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer

LIBRARIES = ("kdplug", "textbrewer")
LOSSES = ("kd", "kd+matches")


@dataclass(frozen=True)
class Settings:
    """What all students have in common. Chosen on the dev part with seed 1 and two layers."""

    lr: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    temperature: float = 4.0
    kd_weight: float = 16.0
    hard_label_weight: float = 1.0
    hidden_weight: float = 30.0
    attention_weight: float = 100.0

    def distillation(self, layers: int, loss: str) -> dict[str, Any]:
        """The keys that kdplug's config and TextBrewer's have in common."""
        step = TEACHER_LAYERS // layers
        hidden = [_match("hidden", step * place, place, self.hidden_weight) for place in range(layers + 1)]
        attention = [
            _match("attention", step * place + step - 1, place, self.attention_weight) for place in range(layers)
        ]
        return {
            "temperature": self.temperature,
            "kd_loss_type": "ce",
            "kd_loss_weight": self.kd_weight,
            "hard_label_weight": self.hard_label_weight,
            "intermediate_matches": hidden + attention if loss == "kd+matches" else [],
        }

    def schedule(self, steps: int) -> dict[str, Any]:
        """The learning rate rises and then falls, both linearly."""

        def rate(step: int) -> float:
            return factor(step, schedule="linear", warmup=self.warmup, total_steps=steps)

        return {"scheduler_class": LambdaLR, "scheduler_args": {"lr_lambda": rate}}

    def optimizer(self, model: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
        """AdamW over all weights."""
        return torch.optim.AdamW(model.parameters(), lr=lr or self.lr, weight_decay=self.weight_decay, fused=True)


def _match(feature: str, above: int, below: int, weight: float) -> dict[str, Any]:
    return {"feature": feature, "layer_T": above, "layer_S": below, "loss": f"{feature}_mse", "weight": weight}


def adaptor(batch: Batch, outputs: Any) -> dict[str, Any]:
    """What both libraries read of a model."""
    found = {"logits": outputs.logits, "losses": outputs.loss, "inputs_mask": batch["attention_mask"]}
    features = {"hidden": outputs.hidden_states, "attention": outputs.attentions}
    return {**found, **{key: value for key, value in features.items() if value is not None}}


class Clock:
    """A loader that notes the CPU time at which each batch is asked for."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.asked.append(time.process_time())
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


@dataclass(frozen=True)
class Run:
    """One training of one student. ``folder`` gets what the library writes."""

    settings: Settings
    layers: int
    seed: int
    folder: str

    def alone(self, student: nn.Module, loader: Clock) -> None:
        """On labels, without a teacher."""
        config = kdplug.TrainingConfig(output_dir=self.folder, device="cpu", seed=self.seed)
        trainer = kdplug.BasicTrainer(config, student, adaptor, show_progress=False)
        trainer.train(self.settings.optimizer(student), loader, **self._length(loader))

    def by_kdplug(self, student: nn.Module, teacher: nn.Module, loader: Clock, loss: str) -> None:
        """``kdplug.GeneralDistiller``."""
        training = kdplug.TrainingConfig(output_dir=self.folder, device="cpu")
        config = kdplug.DistillationConfig(**self.settings.distillation(self.layers, loss))
        distiller = kdplug.GeneralDistiller(training, config, teacher, student, adaptor, adaptor, show_progress=False)
        torch.manual_seed(self.seed)
        distiller.train(self.settings.optimizer(student), loader, **self._length(loader))

    def by_textbrewer(self, student: nn.Module, teacher: nn.Module, loader: Clock, loss: str) -> None:
        """``textbrewer.GeneralDistiller``."""
        training = textbrewer.TrainingConfig(output_dir=self.folder, device="cpu", ckpt_steps=len(loader))
        config = textbrewer.DistillationConfig(**self.settings.distillation(self.layers, loss))
        distiller = textbrewer.GeneralDistiller(training, config, teacher, student, adaptor, adaptor)
        torch.manual_seed(self.seed)
        with distiller:
            distiller.train(self.settings.optimizer(student), loader, **self._length(loader))

    def _length(self, loader: Clock) -> dict[str, Any]:
        steps = len(loader)
        return {"num_steps": steps, "max_grad_norm": self.settings.max_grad_norm, **self.settings.schedule(steps)}

    def distil(self, library: str, student: nn.Module, teacher: nn.Module, loader: Clock, loss: str) -> None:
        """From the teacher, through ``library``."""
        ways: dict[str, Callable[..., None]] = {"kdplug": self.by_kdplug, "textbrewer": self.by_textbrewer}
        ways[library](student, teacher, loader, loss)
