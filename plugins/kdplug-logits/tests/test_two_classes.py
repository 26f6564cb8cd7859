"""With two classes some losses are constant: they say so instead of training nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logits_strategies import LOSSES, case

import kdplug
from kdplug import ShapeError

CONSTANT = [("logit_std", {}), ("dist", {"gamma": 0}), ("dkd", {"alpha": 0})]


@pytest.mark.parametrize(("name", "settings"), CONSTANT)
def test_two_classes_that_leave_no_gradient_are_an_error(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=rf"^{name}: needs at least three classes, got student_logits \[4, 2\]: "):
        case(4, 2).loss(name, **settings)


def test_the_objective_names_the_key() -> None:
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type="logit_std"))
    with pytest.raises(ShapeError, match=r"^kd_loss_type: logit_std: needs at least three classes"):
        objective(torch.randn(4, 2), torch.randn(4, 2))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("logit_std", "sampled")])
def test_every_other_loss_trains_on_two_classes(name: str) -> None:
    assert case(4, 2).gradient(name).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "settings"), CONSTANT)
def test_three_classes_are_enough(name: str, settings: dict[str, Any]) -> None:
    assert case(4, 3).gradient(name, **settings).abs().max() > 1e-4
