"""Runs that would train something else than they say: none may do so in silence."""

from __future__ import annotations

import random

import pytest
import torch
from label_run import FORMS, LABELS, train
from small_run import weights


@pytest.mark.attack("labels spread unevenly over the micro-batches of a step")
@pytest.mark.parametrize("form", FORMS)
def test_no_division_of_a_batch_changes_the_student(tmp_path, attempts, form):
    draw = random.Random(form)
    whole, _ = train(tmp_path / "whole", [list(range(len(LABELS)))], form, accumulation=1)
    for attempt in range(5):
        order = draw.sample(range(len(LABELS)), len(LABELS))
        edges = [0, *sorted(draw.sample(range(1, len(LABELS)), draw.randint(1, 5))), len(LABELS)]
        cut = [order[start:end] for start, end in zip(edges, edges[1:], strict=False)]
        student, _ = train(tmp_path / str(attempt), cut, form, accumulation=len(cut))
        attempts.record(torch.allclose(weights(student), weights(whole), rtol=0, atol=1e-10))
    assert attempts.held == attempts.tried
