"""Scripts on the TextBrewer names that would train nothing, or something else than they say."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdplug.integrations.textbrewer as textbrewer
from kdplug.errors import ConfigError, OutputsError

KEPT = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])


def adaptor(*keys):
    def adapt(batch, logits):
        found = {"logits": logits, "logits_mask": batch[1], "losses": logits.square().mean()}
        return {key: found[key] for key in keys}

    return adapt


class Tagger(nn.Linear):
    def forward(self, inputs, mask):
        return super().forward(inputs)


def train(folder, ours, theirs, *, kind="GeneralDistiller", training=None, num_epochs=1, **config):
    """The student's weights before and after."""
    torch.manual_seed(0)
    teacher, student, inputs = Tagger(4, 5), Tagger(4, 5), torch.randn(4, 3, 4)
    before = student.weight.detach().clone()
    distiller = getattr(textbrewer, kind)(
        textbrewer.TrainingConfig(output_dir=folder, device="cpu", **(training or {})),
        textbrewer.DistillationConfig(**config),
        teacher,
        student,
        adaptor(*theirs),
        adaptor(*ours),
    )
    loader = DataLoader(TensorDataset(inputs, KEPT), batch_size=4)
    distiller.train(torch.optim.SGD(student.parameters(), lr=1.0), loader, num_epochs=num_epochs)
    return before, student.weight.detach()


@pytest.mark.attack("a TextBrewer script that trains nothing")
def test_nothing_to_minimize_is_an_error(tmp_path):
    with pytest.raises(OutputsError, match="nothing to minimize"):
        train(tmp_path, ["logits_mask"], ["logits_mask"])


@pytest.mark.attack("a TextBrewer script that trains nothing")
@pytest.mark.parametrize("epochs", [0, 0.5, -1])
def test_less_than_one_pass_is_an_error(tmp_path, epochs):
    with pytest.raises(ConfigError, match="num_epochs"):
        train(tmp_path, ["logits"], ["logits"], num_epochs=epochs)


@pytest.mark.attack("a TextBrewer adaptor that leaves out what a term needs")
def test_a_term_that_is_left_out_is_reported(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "Distillation")
    train(tmp_path, ["logits", "losses"], ["logits_mask"])
    assert "there is no kd loss: adaptor_T returned no logits" in caplog.text
    train(tmp_path, ["logits"], ["logits"], hard_label_weight=1)
    assert "hard_label_weight has no effect" in caplog.text


@pytest.mark.attack("a TextBrewer cache drops the teacher's mask")
def test_cached_logits_keep_the_teachers_mask(tmp_path):
    sides = ["logits"], ["logits", "logits_mask"]
    _, live = train(tmp_path, *sides, kind="BasicDistiller")
    _, cached = train(tmp_path, *sides, kind="BasicDistiller", is_caching_logits=True)
    assert torch.equal(cached, live)


@pytest.mark.attack("a TextBrewer config with a value of another type")
@pytest.mark.parametrize(
    ("training", "config"),
    [
        ({"gradient_accumulation_steps": 1.5}, {}),
        ({"ckpt_epoch_frequency": 0}, {}),
        ({}, {"probability_shift": "false"}),
        ({}, {"is_caching_logits": 1}),
        ({}, {"kd_loss_weight": float("nan")}),
        ({}, {"hard_label_weight": float("inf")}),
    ],
)
def test_it_is_an_error_that_names_the_field(tmp_path, training, config):
    (field,) = {**training, **config}
    with pytest.raises(ConfigError, match=field):
        train(tmp_path, ["logits"], ["logits"], training=training, **config)
