"""Adaptors and models that fill one dict or list for both sides and every batch: each side keeps its own outputs."""

from __future__ import annotations

import pytest
import torch
from named_scene import RELATION, SRRL, Rowwise
from small_run import MATCH, Net, make_batches, make_distiller, make_student, make_teacher, sgd, weights

SHARED = {}


def apart(_batch, outputs):
    mask = outputs["logits"][:, 0] > -9.0
    return {**outputs, "logits_mask": mask}


def into_one_dict(batch, outputs):
    SHARED.clear()
    SHARED.update(apart(batch, outputs))
    return SHARED


HIDDEN = []


def into_one_list(batch, outputs):
    found = apart(batch, outputs)
    HIDDEN[:] = found["hidden"]
    return {**found, "hidden": HIDDEN}


class OneDict(Net):
    """A model that returns the same dict each time."""

    def forward(self, x):
        SHARED.update(super().forward(x))
        return SHARED


def train(folder, adaptors=(apart, apart), student=None, teacher=None, matches=(), **training):
    student = student or make_student()
    distiller = make_distiller(folder, student, teacher, adaptors=adaptors, matches=matches, training=training)
    distiller.train(sgd(student), make_batches(4), num_epochs=1)
    return weights(student)


@pytest.mark.attack("both sides' outputs in one dict or list")
@pytest.mark.parametrize("adaptor", [into_one_dict, into_one_list])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("captures", [False, True])
def test_an_adaptor_may_fill_one_object_for_both_sides(tmp_path, adaptor, accumulation, captures):
    projected = {**MATCH, "proj": ["linear", 3, 5]}
    matches = [{**projected, "layer_T": "inner", "layer_S": "inner"}] if captures else [projected]
    torch.manual_seed(0)
    expected = train(tmp_path / "apart", matches=matches, gradient_accumulation_steps=accumulation)
    torch.manual_seed(0)
    found = train(tmp_path / "one", (adaptor, adaptor), matches=matches, gradient_accumulation_steps=accumulation)
    assert torch.equal(found, expected)


EXTRAS = {}


def with_extras(_batch, outputs):
    return {**outputs, "extras": {"values": outputs["hidden"][0] * 2}}


def into_one_mapping(batch, outputs):
    EXTRAS["values"] = with_extras(batch, outputs)["extras"]["values"]
    return {**outputs, "extras": EXTRAS}


@pytest.mark.attack("both sides' outputs in one dict or list")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "terms", [[RELATION, {"loss": "kl"}], [RELATION, SRRL, {"loss": "kl"}]], ids=["plain", "captures"]
)
def test_an_adaptor_may_fill_one_mapping_of_extras_for_both_sides(tmp_path, terms, accumulation):
    ends = []
    for adaptor in (with_extras, into_one_mapping):
        torch.manual_seed(0)
        student, training = make_student(), {"gradient_accumulation_steps": accumulation}
        options = {"adaptors": (adaptor, adaptor), "terms": terms, "training": training}
        distiller = make_distiller(tmp_path / adaptor.__name__, student, Rowwise(), **options)
        distiller.train(sgd(student, lr=0.01), make_batches(4), num_epochs=1)
        ends.append(weights(student))
    assert torch.equal(*ends)


@pytest.mark.attack("both sides' outputs in one dict or list")
def test_models_may_return_one_dict(tmp_path):
    expected = train(tmp_path / "apart", (None, None))
    SHARED.clear()
    student, teacher = OneDict(3, seed=1), OneDict(5, seed=2)
    assert torch.equal(train(tmp_path / "one", (None, None), student, teacher), expected)
    assert torch.equal(weights(teacher), weights(make_teacher()))
