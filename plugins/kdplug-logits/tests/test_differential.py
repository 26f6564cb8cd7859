"""Against other implementations, where they are installed, and against torch's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from logits_strategies import Case, case, cases
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

import kdplug

examples = settings(max_examples=25, deadline=None)
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=tolerance, atol=tolerance)


@given(drawn=cases())
@examples
def test_kl_and_reverse_kl_are_those_of_torch_distributions(drawn: Case) -> None:
    degrees = torch.as_tensor(drawn.temperature, dtype=torch.float64)
    per_item = degrees.unsqueeze(-1) if degrees.dim() else degrees
    student, teacher = (Categorical(logits=side / per_item) for side in (drawn.student, drawn.teacher))
    assert close(drawn.loss("kl").value, (degrees**2 * kl_divergence(teacher, student)).mean())
    assert close(drawn.loss("reverse_kl").value, (degrees**2 * kl_divergence(student, teacher)).mean())


def test_kl_is_torchs_kl_div_with_batchmean_on_items_in_a_row() -> None:
    found = case(6, 5)
    expected = functional.kl_div(
        found.student.log_softmax(-1), found.teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert close(found.loss("kl").value, expected)


def test_bce_is_torchs_with_the_softened_teacher_as_target_summed_over_classes() -> None:
    found = case(6, 5)
    found.temperature = 2.0
    target = (found.teacher / 2).sigmoid()
    summed = functional.binary_cross_entropy_with_logits(found.student / 2, target, reduction="sum")
    assert close(found.loss("bce").value, 4 * summed / 6)


def test_regression_to_one_number_is_torchs_mean_squared_error() -> None:
    found = case(6, 1)
    assert close(found.loss("regression").value, functional.mse_loss(found.student, found.teacher))


def test_ranking_is_torchs_margin_loss_on_pairs() -> None:
    found = case(1, 2)
    found.teacher = torch.tensor([[2.0, 1.0]])
    expected = functional.margin_ranking_loss(*found.student.split(1, -1), torch.ones(1, 1), margin=0.7)
    assert close(found.loss("ranking", form="hinge", margin=0.7).value, expected)


def _presets(name: str) -> Callable[..., Any]:
    try:
        return kdplug.losses.load(f"kdplug-presets:{name}")
    except kdplug.EntryError:
        pytest.skip("kdplug-presets is not installed")


@given(drawn=cases())
@examples
def test_kl_is_the_cross_entropy_of_presets_less_the_teachers_entropy(drawn: Case) -> None:
    ce = _presets("ce")
    entropy = ce(drawn.teacher, drawn.teacher, drawn.temperature, t2=True).value
    assert close(drawn.loss("kl").value, ce(drawn.student, drawn.teacher, drawn.temperature, t2=True).value - entropy)
    assert close(drawn.gradient("kl"), _gradient(ce, drawn))


def _gradient(ce: Callable[..., Any], drawn: Case) -> torch.Tensor:
    student = drawn.student.detach().requires_grad_()
    return torch.autograd.grad(ce(student, drawn.teacher, drawn.temperature, t2=True).value, student)[0]


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_agrees_with_liger(beta: float) -> None:
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss", reason="liger-kernel is not installed")
    found = case(6, 50)
    student = found.student.clone().requires_grad_()
    theirs = liger.LigerFusedLinearJSDFunction.distillation_loss_fn(student, found.teacher, beta=beta) / 6
    assert close(found.loss("jsd", beta=beta).value, theirs)
    assert close(found.gradient("jsd", beta=beta), torch.autograd.grad(theirs, student)[0])


@pytest.mark.slow  # importing trl imports transformers
@pytest.mark.parametrize("beta", BETAS)
def test_jsd_agrees_with_trl(beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gkd = pytest.importorskip("trl.experimental.gkd", reason="trl is not installed")
    found = case(6, 50, dtype=torch.float32)
    student = found.student.clone().requires_grad_()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student, found.teacher, labels=torch.zeros(6, dtype=torch.long), beta=beta, temperature=2.0
    )
    found.temperature = 2.0
    assert close(found.loss("jsd", beta=beta, t2=False).value, theirs, 1e-6)
    assert close(found.gradient("jsd", beta=beta, t2=False), torch.autograd.grad(theirs, student)[0], 1e-6)
