"""Losses that read extras or parameters run on all items of a large vocabulary at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdplug
from kdplug import FactoredLogits, LossSum, OutputsError, SignatureError
from kdplug.objective.chunked import chunk_source


def with_extras(student_logits, teacher_logits, student_extras) -> LossSum:
    return LossSum((student_logits - teacher_logits).square().sum() + student_extras["a"].sum(), len(student_logits))


def with_parameters(student_logits, teacher_logits, student_parameters) -> LossSum:
    (weight,) = student_parameters.values()
    return LossSum((student_logits - teacher_logits).square().sum() + weight.sum(), len(student_logits))


@pytest.mark.parametrize(
    ("loss", "keys"),
    [(with_extras, {"extras": ["a"]}), (with_parameters, {"reads_S": ["fc:parameter.weight"]})],
    ids=["extras", "parameters"],
)
def test_what_a_term_names_is_never_divided_into_chunks(of, offer, random, monkeypatch, loss, keys):
    monkeypatch.setattr(chunk_source, "_MOST", {"cpu": 8})
    model, offered = nn.ModuleDict({"fc": nn.Linear(3, 2).double()}), offer(loss)
    objective, dense, small = (of({"loss": offered, **keys}, logit_chunk=chunk) for chunk in ("auto", "whole", 8))
    for one in (objective, dense, small):
        one.connect(model)
    factors = random(40, 3, requires_grad=True), random(7, 3, requires_grad=True)
    extra = random(40, requires_grad=True)
    student = {"logits": FactoredLogits(*factors), "extras": {"a": extra}}
    teacher = {"logits": random(40, 7)}
    leaves = [*factors, extra, model["fc"].weight]
    with pytest.warns(
        UserWarning, match="reads extras or parameters, which cannot be divided into chunks, so it is computed"
    ):
        found = objective(student, teacher).total
    expected = dense({**student, "logits": factors[0] @ factors[1].T}, teacher).total
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(one, leaves, allow_unused=True) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(
        OutputsError, match=r"logit_chunk: is 8, but local:offered reads extras or parameters, which cannot be"
    ):
        small(student, teacher)


def test_a_closed_form_gets_neither_extras_nor_parameters(of, offer):
    def rows(student, teacher, temperature):
        return student.sum(-1)

    def read(student_logits, student_extras) -> LossSum:
        return LossSum(student_logits.sum(), len(student_logits))

    loss = kdplug.closed_form(rows)(read)
    with pytest.raises(
        SignatureError, match=r"^terms\.0\.loss: local:offered requests student_extras and declares closed_form"
    ):
        of({"loss": offer(loss), "extras": ["a"]})
