"""A task that is done in a moment, and a recipe for it."""

from __future__ import annotations

import pytest
import torch
from plan_scene import BATCH, Scene
from torch import nn
from torch.nn import functional

import kdplug
from kdplug import Predictions, Recipe
from kdplug.host.active import isolated
from kdplug.host.metadata import scan
from kdplug.recipes.measure import measure_speed
from kdplug.recipes.preview.plan import plan_recipe


class Signs:
    """Is the sum of four numbers positive? The teacher knows; batches are tuples, outputs bare logits."""

    metric = "accuracy"

    def about(self):
        return "The student sees the sign of few sums."

    def build_teacher(self):
        teacher = nn.Linear(4, 2)
        teacher.weight.data = torch.tensor([[-1.0], [1.0]]).expand(2, 4).clone()
        teacher.bias.data.zero_()
        return teacher

    def teacher_fit(self):
        return None

    def build_student(self):
        return nn.Linear(4, 2)

    def data(self, part):
        size = {"teacher": 40, "distillation": 40, "baseline": 6, "validation": 50, "test": 100}[part]
        return torch.randn(size, 4, generator=torch.Generator().manual_seed(size))

    def collate(self, examples):
        return (torch.stack(examples),)

    def teacher_adaptor(self, batch, outputs):
        return {"logits": outputs}

    def student_adaptor(self, batch, outputs):
        return {"logits": outputs, "losses": functional.cross_entropy(outputs, _truth(batch), reduction="none")}

    def evaluate(self, model, batches):
        return self.predict(model, batches).metrics

    def predict(self, model, batches):
        rows = [
            {
                "score": float(found == label),
                "label": int(label),
                "prediction": int(found),
                "probability": float(chance),
            }
            for batch in batches
            for label, (chance, found) in zip(
                _truth(batch), zip(*model(*batch).softmax(-1).max(-1), strict=True), strict=True
            )
        ]
        accuracy = sum(row["score"] for row in rows) / len(rows)
        return Predictions({"accuracy": accuracy, "error": 1 - accuracy}, rows)


def _truth(batch):
    return (batch[0].sum(dim=-1) > 0).long()


def soft_cross_entropy(student_logits, teacher_logits):
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1).mean()


@pytest.fixture
def signs(no_plugins, tmp_path):
    """Makes a recipe for ``Signs``, with changes; nothing but the task and one loss is installed."""
    kdplug.tasks.register("signs")(Signs)
    kdplug.losses.register("soft")(soft_cross_entropy)
    data = {
        "task": "signs",
        "distillation": {"kd_loss_type": "soft"},
        "training": {"num_epochs": 2, "batch_size": 16, "device": "cpu", "ckpt_frequency": 0},
        "output_dir": str(tmp_path / "out"),
    }
    return lambda *changes: Recipe.from_dict(data).with_overrides(changes)


@pytest.fixture
def scene():
    """Plans a recipe for ``Scene``: distillation keys, ``teacher`` and ``student`` adaptor changes, ``training`` keys."""
    with isolated(scan()):
        made = type("OnPolicyCounts", (Scene,), {})
        kdplug.tasks.register("scene")(made)

        def plan(*, teacher=None, student=None, training=None, t2=True, **distillation):
            made.teacher, made.student = (staticmethod(change) if change else None for change in (teacher, student))
            data = {
                "task": "scene",
                "distillation": {"kd_loss_type": {"name": "ce", "t2": t2}, **distillation},
                "training": {"num_epochs": 1, "batch_size": BATCH, "device": "cpu", **(training or {})},
            }
            if distillation.get("kd_loss_weight") == 0 or "terms" in distillation:
                del data["distillation"]["kd_loss_type"]
            return plan_recipe(Recipe.from_dict(data))

        yield plan


@pytest.fixture(autouse=True)
def _quick_speed(monkeypatch):
    """Call each model once in each round, not for 20 ms: a third of a small recipe's time."""
    monkeypatch.setattr(f"{measure_speed.__module__}._ROUND_SECONDS", 0)
