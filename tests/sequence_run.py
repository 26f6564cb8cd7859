"""A run whose losses compare positions of sequences of unequal lengths, in float64."""

from __future__ import annotations

import torch
from cache_scene import Reader, Tokens
from small_run import make_distiller, sgd, weights
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import kdplug
from kdplug import FactoredLogits, LossSum

TERMS = [{"loss": "slopes"}, {"loss": "policy", "weight": 0.5}]


@kdplug.whole_sequences
def slopes(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> LossSum:
    """Squared difference of the steps between neighbouring positions, mean over pairs of positions."""
    pairs = mask[:, 1:] & mask[:, :-1]
    steps = (student_logits - teacher_logits).diff(dim=1).square().mean(-1)
    return LossSum(steps.masked_fill(~pairs, 0.0).sum(), pairs.sum())


@kdplug.whole_sequences
def policy(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, mask: Tensor) -> LossSum:
    """Policy gradient whose reward is the mean log-ratio of a whole sequence, mean over sequences."""
    own, theirs = (
        side.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
        for side in (student_logits, teacher_logits)
    )
    reward = (theirs - own).detach().sum(-1) / mask.sum(-1).clamp_min(1)
    return LossSum(-(reward * own.sum(-1)).sum(), mask.any(-1).sum())


def register():
    """Register both losses."""
    kdplug.losses.register("slopes")(slopes)
    kdplug.losses.register("policy")(policy)


def adaptor(model, *, factored):
    """Return the logits of each token, or their factors, and the tokens themselves as labels."""

    def read(batch, outputs):
        logits = FactoredLogits(outputs["hidden"][0], model.head) if factored else outputs["logits"]
        return {"logits": logits, "logits_mask": batch["attention_mask"], "labels": batch["input_ids"] % 3}

    return read


def distill(folder, *, batch_size, factored=False, left=False, epochs=2, shuffle=True, train=None, **distillation):
    """Train a student on sentences; its weights at the end."""
    torch.manual_seed(0)
    student, teacher, tokens = Reader(3, seed=1), Reader(5, seed=2), Tokens(left)
    distiller = make_distiller(
        folder,
        student,
        teacher,
        training={"seed": 7, "ckpt_frequency": 2, **distillation.pop("training", {})},
        adaptors=tuple(adaptor(model, factored=factored) for model in (teacher, student)),
        terms=TERMS,
        **{"logit_chunk": 9 if factored else "auto", **distillation},
    )
    loader = DataLoader(Subset(tokens, range(16)), batch_size, shuffle=shuffle, collate_fn=tokens.collate)
    distiller.train(sgd(student, lr=0.1, momentum=0.9), loader, num_epochs=epochs, **(train or {"overwrite": True}))
    return weights(student)
