"""A plan prices the logits of a loss that needs all of them at once, and refuses those that do not fit."""

from __future__ import annotations

import io

import psutil
import pytest
from plan_scene import BATCH, LENGTH, WORDS
from rich.console import Console
from torch import nn

import kdplug
from kdplug import FactoredLogits, OutputsError
from kdplug.cli.plan import plan_lines
from kdplug.objective.chunked import factored_kd

LOGITS = BATCH * LENGTH * WORDS * 4
"""Bytes of one side's logits of a batch in float32."""


def worst(student_logits, teacher_logits):
    """The largest squared error of an item."""
    return (student_logits - teacher_logits).square().mean(-1).max()


@kdplug.mean_over_items
def mean_error(student_logits, teacher_logits):
    """The mean squared error."""
    return (student_logits - teacher_logits).square().mean()


@kdplug.whole_sequences
def rough(student_logits, teacher_logits):
    """The largest step between neighbouring positions."""
    return (student_logits - teacher_logits).diff(dim=1).square().mean(-1).max()


def factored(batch, found):
    """The same logits, from factors that a head would have."""
    width = found["hidden"].shape[-1]
    head = nn.Linear(width, WORDS)
    return {"logits": FactoredLogits(found["hidden"], head.weight, head.bias)}


@pytest.fixture
def losses(scene):
    for loss in (worst, mean_error, rough):
        kdplug.losses.register(loss.__name__)(loss)
    return scene


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of seven items under ``logit_chunk: auto``."""
    monkeypatch.setattr(factored_kd, "chunk_length", lambda *_: 7)


def free(monkeypatch, size):
    found = psutil.virtual_memory()._replace(available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


@pytest.mark.parametrize("loss", ["worst", "rough"])
def test_an_undeclared_scalar_is_priced_with_both_sides_a_softmax_and_a_gradient(losses, small_chunks, loss):
    plan = losses(kd_loss_type=loss, student=factored, teacher=factored)
    (item,) = plan.whole_logits
    assert (item.name, item.bytes) == ("kd_loss", 4 * LOGITS)
    assert plan.to_data()["whole_logits"][0]["bytes"] == 4 * LOGITS
    (warning,) = [one.message for one in plan.warnings if "declares no reduction" in one.message]
    assert f"the logits of all {BATCH * LENGTH} items at once, about 6.56e-06 GiB" in warning
    assert f"(student + teacher + softmax + gradient: {BATCH * LENGTH} × {WORDS} × 4 bytes each)" in warning


def test_the_price_is_printed(losses, small_chunks):
    out = io.StringIO()
    for line in plan_lines(losses(kd_loss_type="worst", student=factored, teacher=factored)):
        Console(file=out, width=200).print(line)
    assert "logits of kd_loss, all at once: 6.88 KiB (computed: both sides, a softmax and a gradient" in out.getvalue()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_one_factored_side_is_priced_the_same(losses, small_chunks, side):
    assert losses(kd_loss_type="worst", **{side: factored}).whole_logits[0].bytes == 4 * LOGITS


@pytest.mark.parametrize("keys", [{"kd_loss_type": "mean_error"}, {"kd_loss_type": "mse"}])
def test_a_loss_in_chunks_has_no_such_price(losses, small_chunks, keys):
    assert losses(student=factored, teacher=factored, **keys).whole_logits == []


def test_dense_logits_have_no_such_price_as_they_are_measured(losses, small_chunks):
    assert losses(kd_loss_type="worst").whole_logits == []


@pytest.mark.parametrize("loss", ["worst", "rough"])
def test_what_does_not_fit_is_refused(losses, small_chunks, monkeypatch, loss):
    free(monkeypatch, 4 * LOGITS - 1)
    with pytest.raises(
        OutputsError,
        match=rf"^distillation\.kd_loss_type: local:{loss} declares no reduction, so it needs .* GiB .* GiB are free",
    ):
        losses(kd_loss_type=loss, student=factored, teacher=factored)


def test_what_just_fits_is_not(losses, small_chunks, monkeypatch):
    free(monkeypatch, 4 * LOGITS)
    assert losses(kd_loss_type="worst", student=factored, teacher=factored).whole_logits


@pytest.mark.parametrize("loss", ["worst", "mean_error", "mse"])
def test_a_chunk_of_everything_is_priced_and_refused_if_the_logits_alone_do_not_fit(losses, monkeypatch, loss):
    keys = {"kd_loss_type": loss, "student": factored, "teacher": factored, "logit_chunk": "whole"}
    free(monkeypatch, 2 * LOGITS)
    plan = losses(**keys)
    assert plan.whole_logits[0].bytes == 4 * LOGITS
    assert not [one for one in plan.warnings if "declares no reduction" in one.message]
    free(monkeypatch, 2 * LOGITS - 1)
    with pytest.raises(
        OutputsError, match=r"^distillation\.logit_chunk: is whole, so .*GiB are free\. .*et logit_chunk: a"
    ):
        losses(**keys)
