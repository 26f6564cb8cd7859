"""Balancers of kdplug-presets: the laws, and the formulas of the papers in float64."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import kdplug
from kdplug import SettingError
from kdplug.testing import BalancerLaws
from kdplug_presets.balancer import DynamicWeightAverage, GradNorm, Share, Uncertainty


class TestUncertainty(BalancerLaws):
    entry = "kdplug-presets:uncertainty"
    symmetric = True


class TestFastUncertainty(TestUncertainty):
    settings = {"lr": 1.0}


class TestDynamicWeightAverage(BalancerLaws):
    entry = "kdplug-presets:dwa"
    settings = {"period": 3}
    symmetric = True


class TestGradNorm(BalancerLaws):
    entry = "kdplug-presets:gradnorm"
    symmetric = True


class TestGradNormWithALargeStep(TestGradNorm):
    settings = {"alpha": 0.0, "lr": 0.5}


class TestShare(BalancerLaws):
    entry = "kdplug-presets:share"
    symmetric = True
    weights = (1.0, 1.0, 0.5, 2.0)
    shares = (0.3, 0.2, None, None)


class TestSharesAlone(BalancerLaws):
    entry = "kdplug-presets:share"
    shares = (0.5, 0.3, 0.2)


def drawn(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64) + 0.1


def test_uncertainty_is_the_joint_training_of_the_log_variances():
    """Stochastic gradient descent on the paper's objective, with the value of each term held constant."""
    balancer, logs = Uncertainty(3, lr=0.2).double(), nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([logs], lr=0.2)
    for step in range(20):
        values = drawn(step) * torch.tensor([0.1, 1.0, 10.0])
        found = balancer.update(values)
        optimizer.zero_grad()
        (torch.exp(-logs) * values + logs).sum().backward()
        optimizer.step()
        torch.testing.assert_close(found, torch.exp(-logs.detach()), rtol=1e-12, atol=0)


def test_uncertainty_ends_at_the_inverse_of_each_value():
    balancer, values = Uncertainty(3, lr=0.5).double(), drawn(0)
    for _ in range(500):
        found = balancer.update(values)
    torch.testing.assert_close(found, 1 / values)


def test_dwa_is_the_formula_of_the_paper():
    """Weights of 1 in the first two periods, then K·softmax(ratio of the last two means / T)."""
    balancer, period, means = DynamicWeightAverage(3, period=4).double(), [], []
    for step in range(20):
        values = drawn(step)
        period.append(values)
        found = balancer.update(values)
        if len(period) == 4:
            means.append(torch.stack(period).mean(0))
            period = []
        expected = torch.ones(3, dtype=torch.float64)
        if len(means) >= 2:
            powers = [math.exp(float(new / old) / 2) for new, old in zip(means[-1], means[-2], strict=True)]
            expected = torch.tensor([3 * power / sum(powers) for power in powers], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        assert float(found.sum()) == pytest.approx(3)


def test_gradnorm_is_algorithm_1_with_adam():
    """The gradient of the L1 loss by autograd, with a constant target, in torch's Adam; then weights that add up to K."""
    balancer = GradNorm(3).double()
    weights = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([weights], lr=0.025)
    first = None
    for step in range(30):
        values, gradients = drawn(step), drawn(100 + step) * 5
        first = values if first is None else first
        found = balancer.update(values, gradients)
        ratio = values / first
        norms = weights * gradients
        target = (norms.mean() * (ratio / ratio.mean()) ** 1.5).detach()
        optimizer.zero_grad()
        (norms - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights.mul_(3 / weights.sum())
        torch.testing.assert_close(found, weights.detach(), rtol=1e-9, atol=0)


def test_gradnorm_equalizes_the_gradient_norms():
    """With alpha 0 and constant gradients, every weighted norm becomes the mean."""
    balancer, gradients = GradNorm(3, alpha=0, lr=0.005).double(), torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    for step in range(3000):
        found = balancer.update(drawn(step), gradients)
    norms = found * gradients
    assert float(norms.max() / norms.min()) < 1.3
    assert float(found.sum()) == pytest.approx(3)


@pytest.mark.parametrize(
    ("weights", "shares"), [((1.0, 0.7, 1.0), (0.3, None, 0.2)), ((2.0, 1.0, 0.5), (None, 0.9, None))]
)
def test_shares_beside_fixed_weights_are_shares_of_the_sum_of_gradient_norms(weights, shares):
    balancer = Share(weights, shares, calibrate_steps=3).double()
    steps = [drawn(step) for step in range(3)]
    for gradients in steps:
        found = balancer.update(gradients)
    pulls = found * torch.stack(steps).mean(0)
    for place, share in enumerate(shares):
        fixed = weights[place] if share is None else None
        total = sum(float(pull) * (weights[at] if shares[at] is None else 1.0) for at, pull in enumerate(pulls))
        if share is not None:
            assert float(pulls[place]) / total == pytest.approx(share)
        else:
            assert float(found[place]) == 1.0, fixed


def test_shares_alone_give_the_first_one_weight_1():
    balancer = Share((1.0, 1.0, 1.0), (0.5, 0.3, 0.2)).double()
    gradients = drawn(0)
    found = balancer.update(gradients)
    assert float(found[0]) == pytest.approx(1.0)
    pulls = found * gradients
    torch.testing.assert_close(pulls / pulls.sum(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (
            (0.5, 0.3),
            "the shares add up to 0.8, but every term has one, so they must add up to 1. In the same ratio: 0.625, 0.375",
        ),
        ((0.7, 0.7), "the shares add up to 1.4, but every term has one"),
        ((1.0, None), "the shares add up to 1, which leaves nothing for the terms with a fixed weight"),
        ((0.6, 0.5, None), "the shares add up to 1.1, which leaves nothing"),
    ],
)
def test_shares_that_do_not_add_up_are_an_error(shares, message):
    with pytest.raises(SettingError, match=message):
        Share((1.0,) * len(shares), shares)


def test_shares_that_add_up_to_1_but_for_rounding_are_accepted():
    assert Share((1.0,) * 3, (0.1 + 0.2, 0.3, 0.4)).update(drawn(0)).isfinite().all()


def test_every_first_party_entry_is_under_laws() -> None:
    declared = {
        found.entry for found in globals().values() if isinstance(found, type) and issubclass(found, BalancerLaws)
    }
    offered = {entry.qualified for entry in kdplug.balancers.entries() if entry.dist == "kdplug-presets"}
    assert offered == declared - {None}
