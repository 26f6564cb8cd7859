"""A task whose adaptors return what a test wants to see planned."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LENGTH, WORDS, BATCH = 5, 11, 8


class Net(nn.Module):
    """Tokens in; logits ``[B, L, words]``, one hidden layer, and attention scores ``[B, heads, L, L]``."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids):
        hidden = torch.tanh(self.inner(self.embed(ids)))
        scores = (hidden @ hidden.transpose(1, 2)).unsqueeze(1).expand(-1, 2, -1, -1)
        return {"logits": self.head(hidden), "hidden": hidden, "scores": scores}


class Scene:
    """``teacher`` and ``student``, set on the class, change what the adaptors return: ``change(batch, found)``."""

    metric = "accuracy"
    teacher = student = None

    def about(self):
        return "Words."

    def build_teacher(self):
        return Net(6)

    def teacher_fit(self):
        return {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}

    def build_student(self):
        return Net(4)

    def data(self, part):
        return torch.randint(0, WORDS, (20, LENGTH), generator=torch.Generator().manual_seed(1))

    def collate(self, examples):
        return {"ids": torch.stack(examples)}

    def teacher_adaptor(self, batch, outputs):
        return _adapted(batch, outputs, type(self).teacher)

    def student_adaptor(self, batch, outputs):
        return _adapted(batch, outputs, type(self).student)

    def evaluate(self, model, batches):
        return {"accuracy": 0.0}


def _adapted(batch, outputs, change):
    found = {
        "logits": outputs["logits"],
        "hidden": [outputs["hidden"]],
        "losses": functional.cross_entropy(outputs["logits"].flatten(0, 1), batch["ids"].flatten()),
    }
    return found if change is None else {**found, **change(batch, outputs)}
