"""The loss that takes two vocabularies, where an objective calls it."""

from __future__ import annotations

import pytest
import torch

import kdplug
from kdplug_logits.uld import uld


@pytest.mark.parametrize("classes", [(5, 9), (9, 5)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_objective_hands_uld_both_vocabularies(classes, temperature):
    student, teacher = (torch.randn(2, 4, size, generator=torch.Generator().manual_seed(size)) for size in classes)
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type="uld", temperature=temperature))
    torch.testing.assert_close(objective(student, teacher).total, uld(student, teacher, temperature).value)


def test_every_other_loss_still_wants_one_vocabulary():
    declared = {
        name for name in kdplug.losses if name.startswith("kdplug-logits:") or ":" not in name
        if getattr(kdplug.losses.load(name), "across_vocabularies", False)
    }  # fmt: skip
    assert declared == {"uld"}
