"""Teachers, data and runs for the tests of teacher caches."""

from __future__ import annotations

from collections import UserDict

import torch
from small_run import PROJECTED, make_distiller, make_student, sgd, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def data(count=22, seed=3):
    return TensorDataset(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def loader(count=22, **options):
    return DataLoader(data(count), **{"batch_size": 4, "shuffle": True, **options})


class Rowwise(nn.Module):
    """A teacher whose row of the outputs depends on its row of the inputs alone, to the last bit, whatever the batch.

    ``before`` is called before each forward pass, with the number of passes before it.
    """

    def __init__(self, seed=2):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(3, 5, generator=generator, dtype=torch.float64))
        self.act, self.calls = nn.Tanh(), 0
        self.before = lambda calls: None

    @property
    def before(self):
        return self._before[0]

    @before.setter
    def before(self, function):
        self._before = [function]  # in a list: functions that a module holds are part of its architecture

    def forward(self, x, scale=1.0):
        self.before(self.calls)
        self.calls += 1
        hidden = self.act((x.unsqueeze(-2) * self.inner * scale).sum(-1))
        logits = (hidden.unsqueeze(-2) * self.head).sum(-1)
        return {"logits": logits, "hidden": [hidden, hidden.cos()], "losses": logits.square().mean()}


def run(folder, teacher, batches, *, caching, epochs=3, matches=(PROJECTED,), steps=None, **more):
    """Train a student, in place of an earlier one unless it is resumed; its weights and those of its projections."""
    torch.manual_seed(0)
    student = make_student(dropout=0.3)
    training = {"seed": 7, **more.pop("training", {})}
    train = {"overwrite": "resume" not in more.get("train", {}), **more.pop("train", {})}
    distiller = make_distiller(
        folder, student, teacher, matches=matches, training=training, is_caching_logits=caching, **more
    )
    length = {"num_epochs": epochs} if steps is None else {"num_steps": steps}
    distiller.train(sgd(student, momentum=0.9), batches, **length, **train)
    return torch.cat([weights(student), weights(distiller.objective)]) if matches else weights(student)


class Tokens(Dataset):
    """Sentences of unequal lengths."""

    def __init__(self, left=False):
        generator = torch.Generator().manual_seed(11)
        lengths = torch.randint(1, 9, (22,), generator=generator).tolist()
        self.rows = [torch.randint(1, 30, (length,), generator=generator) for length in lengths]
        self.left = left

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return {"input_ids": self.rows[place]}

    def collate(self, items):
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.int64)
        for place, item in enumerate(items):
            row = item["input_ids"]
            ids[place, slice(-len(row), None) if self.left else slice(len(row))] = row
        return UserDict(input_ids=ids, attention_mask=(ids > 0).long())


class Reader(nn.Module):
    """Reads each token by itself; what it says of padding depends on how much of it there is."""

    def __init__(self, width, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(30, width, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(3, width, generator=generator, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        noise = 100.0 * input_ids.shape[1] * (1 - attention_mask).unsqueeze(-1)
        hidden = self.table[input_ids] + noise
        scores = (hidden.unsqueeze(1) * hidden.unsqueeze(2)).sum(-1).unsqueeze(1).expand(-1, 2, -1, -1)
        logits = (hidden.unsqueeze(-2) * self.head).sum(-1)
        return {"logits": logits, "hidden": [hidden], "attention": [scores]}


def read(batch, outputs):
    mask = batch["attention_mask"]
    return {**outputs, "logits_mask": mask, "inputs_mask": mask}
