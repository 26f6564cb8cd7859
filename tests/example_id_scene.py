"""Losses that record which examples they see, and data whose rows hold their places."""

from __future__ import annotations

from itertools import chain

import torch
from small_run import make_batches, make_distiller, sgd
from torch import nn
from torch.utils.data import Dataset

from kdplug import LossSum, losses

SEEN: list[tuple[list[int], torch.Tensor]] = []
COUNT = 10


class Bank(nn.Module):
    """Compares each example's features with what a bank keeps of it, and then keeps the teacher's."""

    def __init__(self, num_examples, out_dim, *, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("bank", torch.zeros(num_examples, out_dim))
        self.map = nn.Linear(3, out_dim)

    def forward(self, student_features, teacher_features, example_ids) -> LossSum:
        SEEN.append((example_ids.tolist(), student_features.detach().clone()))
        error = (self.map(student_features) - self.bank[example_ids] - teacher_features).square().mean(-1)
        with torch.no_grad():
            kept = self.momentum * self.bank[example_ids] + (1 - self.momentum) * teacher_features
            self.bank[example_ids] = kept.to(self.bank.dtype)
        return LossSum(error.sum(), error.numel())


def logit_bank(student_logits, teacher_logits, example_ids) -> LossSum:
    SEEN.append((example_ids.tolist(), student_logits.detach().clone()))
    error = (student_logits - teacher_logits).square().mean(-1) * (1 + example_ids % 3)
    return LossSum(error.sum(), error.numel())


class Sized(nn.Module):
    """A loss on logits with one learned temperature for each example."""

    def __init__(self, num_examples) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_examples))

    def forward(self, student_logits, teacher_logits, example_ids):
        return ((student_logits - teacher_logits) * self.scale[example_ids, None]).square().mean()


def register():
    """Register the losses, which have seen nothing yet."""
    SEEN.clear()
    for name, loss in (("bank", Bank), ("logit_bank", logit_bank), ("sized", Sized)):
        losses.register(name)(loss)


BANK = {"loss": "bank", "feature": "hidden", "layer_S": 0, "layer_T": 0}


class Rows(Dataset):
    """Ten rows; the first number of each is its place."""

    def __init__(self, count=COUNT, *, noise=0.0):
        self.rows, self.noise = torch.cat(make_batches(count, size=1)), noise
        self.rows[:, 0] = torch.arange(count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place].clone()
        if self.noise:
            row[1:] += self.noise * torch.randn(3, dtype=torch.float64)
        return row


class First(nn.Module):
    """A student whose first feature is the first number of its row."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2).double()
        self.head = nn.Linear(3, 3).double()

    def forward(self, x):
        hidden = torch.cat([x[:, :1], torch.tanh(self.inner(x[:, 1:]))], dim=1)
        return {"logits": torch.cat([x[:, :1], self.head(hidden)[:, 1:]], dim=1), "hidden": [hidden]}


def student():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return First()


def distil(folder, data, term=BANK, *, made=None, train=None, **options):
    """Train on ``data``; the ids that the loss saw, and the distiller."""
    SEEN.clear()
    made = student() if made is None else made
    training = {"seed": 3, **options.pop("training", {})}
    distiller = make_distiller(folder, made, options.pop("teacher", None), training=training, terms=[term], **options)
    with torch.random.fork_rng():
        distiller.train(sgd(made), data, **{"num_epochs": 2, **(train or {})})
    return seen(), distiller


def flat(lists):
    return list(chain.from_iterable(lists))


def seen():
    """The ids of each call, after a check that each row is that of its id."""
    for ids, rows in SEEN:
        assert rows[..., 0].flatten().tolist() == ids
    return [ids for ids, _ in SEEN]
