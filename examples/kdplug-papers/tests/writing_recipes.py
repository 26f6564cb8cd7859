"""Recipes of the methods for language models: a small writer, and a draft, learn from a larger writer."""

from __future__ import annotations

from functools import partial

import torch
from recipe import SHORT, Recipe
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

WORDS, LENGTH = 12, 8


class Writer(nn.Module):
    """A recurrent language model; its outputs need no adaptor."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.inner = nn.Embedding(WORDS, width), nn.GRU(width, width, batch_first=True)
            self.lm_head = nn.Linear(width, WORDS, bias=False)
            nn.init.normal_(self.lm_head.weight)

    def features(self, ids: Tensor) -> Tensor:
        """Return the last hidden states."""
        return self.inner(self.words(ids))[0]

    def forward(self, ids: Tensor, mask: Tensor, by_student: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return logits for each token but the first, who wrote a text, and the tokens that the student wrote."""
        return {
            "logits": self.lm_head(self.features(ids))[:, :-1],
            "logits_mask": mask[:, 1:],
            "extras": {"from_student": by_student, "sampled": ids[:, 1:].where(by_student[:, None] == 1, -100)},
        }

    @torch.no_grad()
    def write(self, first: Tensor) -> Tensor:
        """Continue from the first token of each text."""
        ids = first
        while ids.shape[1] < LENGTH:
            ids = torch.cat([ids, self.lm_head(self.features(ids)[:, -1]).softmax(-1).multinomial(1)], dim=1)
        return ids


def student() -> Writer:
    """Return an untrained model."""
    return Writer(6, seed=1)


def teacher() -> Writer:
    """Return a wider model with random weights."""
    return Writer(12, seed=2)


def texts(*writers: Writer, count: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Return texts of the writers in turn, their masks, and which of them a second writer wrote."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        written = [writer.write(torch.randint(WORDS, (count // len(writers), 1))) for writer in writers]
        lengths = torch.randint(3, LENGTH + 1, (count,))
    by = torch.arange(len(writers)).repeat_interleave(count // len(writers))
    return torch.cat(written), torch.arange(LENGTH) < lengths[:, None], by


def teachers_and_students() -> Dataset[tuple[Tensor, ...]]:
    """Return texts of the teacher and, as many, of the untrained student."""
    return TensorDataset(*texts(teacher(), student()))


def teachers() -> Dataset[tuple[Tensor, ...]]:
    """Return texts of the teacher."""
    return TensorDataset(*texts(teacher()))


def on_policy(writer: nn.Module):
    """Return a function that lets the writer continue the texts of a batch from their first tokens."""

    def written(batch):
        ids, mask, by_student = batch
        return writer.write(ids[:, :1]), mask, torch.ones_like(by_student)

    return written


def apart(own: Tensor, other: Tensor, mask: Tensor) -> float:
    """Return the mean total variation between the next tokens that two logits give."""
    return float((own.softmax(-1) - other.softmax(-1)).abs().sum(-1)[mask].mean()) / 2


@torch.no_grad()
def predictions_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the distance of the predictions on texts of the teacher."""
    ids, mask, by = teachers()[:]
    return apart(student(ids, mask, by)["logits"], teacher(ids, mask, by)["logits"], mask[:, 1:])


class Draft(nn.Module):
    """Predicts the teacher's next feature from the last one and the token after it."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.inner = nn.Embedding(WORDS, width), nn.Linear(2 * width, width)

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return the features of each token but the first."""
        read = torch.cat([features[:, :-1], self.words(ids[:, 1:])], dim=-1)
        return {"hidden": [torch.tanh(self.inner(read))], "inputs_mask": mask[:, 1:]}


class Target(Writer):
    """The model whose features are predicted."""

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return the features of each token but the first."""
        return {"hidden": [self.features(ids)[:, 1:]], "inputs_mask": mask[:, 1:]}


def with_features() -> Dataset[tuple[Tensor, ...]]:
    """Return texts of the teacher, and the features that it has for them, as EAGLE stores them."""
    ids, mask, _ = texts(teacher())
    with torch.no_grad():
        return TensorDataset(ids, mask, teacher().features(ids))


@torch.no_grad()
def drafts_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the distance of the tokens that the teacher's head reads off the features."""
    batch = with_features()[:]
    own, other = (teacher.lm_head(model(*batch)["hidden"][0]) for model in (student, teacher))
    return apart(own, other, batch[1][:, 1:])


EAGLE = {
    "loss": "eagle_draft",
    "feature": "hidden",
    "layer_S": 0,
    "layer_T": 0,
    "reads_T": ["lm_head:parameter.weight"],
}

RECIPES = {
    "distillm2": Recipe(
        {"terms": [{"loss": "distillm2", "extras": ["from_student"]}]},
        student,
        teacher,
        teachers_and_students,
        predictions_apart,
        **SHORT,
    ),
    "minillm": Recipe(
        {"terms": [{"loss": "minillm", "extras": ["sampled"]}]},
        student,
        teacher,
        teachers,
        predictions_apart,
        generates=on_policy,
        **SHORT,
    ),
    "eagle_draft": Recipe(
        {"terms": [EAGLE]},
        partial(Draft, 12, seed=1),
        partial(Target, 12, seed=2),
        with_features,
        drafts_apart,
        **SHORT,
    ),
}
