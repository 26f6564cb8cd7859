"""A token classifier in float64 with few labels, most of them -100, and the forms in which its adaptor returns its losses."""

from __future__ import annotations

import torch
from token_run import CLASSES, LENGTH, TokenNet
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from kdplug import LossSum
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller

LABELS = (1, 1, 5, 4, 0, 3, 2, 0, 5, 1, 0, 0)
"""How many labels each example has."""


def make_data():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(len(LABELS), LENGTH, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (len(LABELS), LENGTH), generator=generator)
    kept = torch.arange(LENGTH) < torch.tensor(LABELS)[:, None]
    return TensorDataset(x, torch.ones(len(LABELS), LENGTH, dtype=torch.bool), labels.masked_fill(~kept, -100))


class LabelNet(TokenNet):
    """Takes the labels, which only its adaptor reads."""

    def forward(self, x, mask, labels):
        return super().forward(x, mask)


def as_sum(logits, labels):
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return LossSum(total, (labels != -100).sum())


def as_sum_with_a_number(logits, labels):
    return as_sum(logits, labels)._replace(count=int((labels != -100).sum()))


def of_each_label(logits, labels):
    return functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def of_each_token(logits, labels):
    return functional.cross_entropy(logits.mT, labels, reduction="none")


def of_each_label_and_token(logits, labels):
    return [as_sum(logits, labels), of_each_token(logits.flip(-1), labels)]


FORMS = {
    form.__name__: form
    for form in (as_sum, as_sum_with_a_number, of_each_label, of_each_token, of_each_label_and_token)
}


def adaptor_of(form):
    def adaptor(batch, outputs):
        return {**outputs, "losses": FORMS[form](outputs["logits"], batch[-1])}

    return adaptor


def train(folder, batch_sampler, form, *, accumulation, epochs=1, training=None, **distillation):
    """Train on batches of these indices; the student and the result."""
    student = LabelNet(4, seed=1)
    torch.manual_seed(0)
    options = {"gradient_accumulation_steps": accumulation, "logging_steps": 1, **(training or {})}
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", **options),
        DistillationConfig(**{"hard_label_weight": 1, **distillation}),
        LabelNet(4, seed=2),
        student,
        adaptor_S=adaptor_of(form),
        show_progress=False,
    )
    loader = DataLoader(make_data(), batch_sampler=batch_sampler)
    result = distiller.train(torch.optim.SGD(student.parameters(), lr=0.5), loader, num_epochs=epochs, overwrite=True)
    return student, result
