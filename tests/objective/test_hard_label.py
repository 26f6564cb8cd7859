"""What each form of the student's own losses counts."""

from __future__ import annotations

import pytest
import torch

from kdplug import LossSum
from kdplug.errors import OutputsError


@pytest.fixture
def term(build):
    """The hard label term of losses."""
    objective = build(kd_loss_weight=0, hard_label_weight=2)
    return lambda losses: objective({"losses": losses}).terms["hard_label_loss"]


@pytest.mark.parametrize(
    ("losses", "value", "count"),
    [
        (torch.tensor(3.0), 3.0, 1),
        (torch.tensor([1.0, 2.0, 6.0]), 3.0, 3),
        (torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 3.0, 4),
        (torch.zeros(0), 0.0, 0),
        (LossSum(torch.tensor(12.0), 4), 3.0, 4),
        (LossSum(torch.tensor(12.0), torch.tensor(4)), 3.0, 4),
        (LossSum(torch.tensor(0.0), 0), 0.0, 0),
        (LossSum(torch.tensor(0.0), torch.tensor(0)), 0.0, 0),
    ],
)
def test_a_loss_is_a_mean_over_what_it_counts(term, losses, value, count):
    found = term(losses)
    assert (found.value.item(), found.weighted.item(), [float(part.count) for part in found.parts]) == (
        value,
        2 * value,
        [count],
    )


def test_each_of_several_losses_keeps_its_own_count(term):
    found = term([LossSum(torch.tensor(12.0), 4), torch.tensor([1.0, 2.0]), torch.tensor(0.5)])
    assert found.value.item() == 3 + 1.5 + 0.5
    assert [float(part.count) for part in found.parts] == [4, 2, 1]


@pytest.mark.parametrize(
    "losses", [torch.zeros(0), LossSum(torch.zeros(()), 0), LossSum(torch.zeros(()), torch.tensor(0))]
)
def test_nothing_that_counts_is_a_0_with_a_gradient_of_0(build, losses):
    leaf = torch.ones(3, requires_grad=True)
    connected = losses + leaf[:0] if isinstance(losses, torch.Tensor) else losses._replace(total=(leaf * 0).sum())
    report = build(kd_loss_weight=0, hard_label_weight=1)({"losses": connected})
    report.total.backward()
    assert report.total.item() == 0
    assert leaf.grad.tolist() == [0, 0, 0]


def test_a_schedule_at_0_connects_a_loss_sum(build):
    leaf = torch.ones(3, requires_grad=True)
    objective = build(kd_loss_weight=0, hard_label_weight_scheduler="growth")
    report = objective({"losses": LossSum(leaf.sum(), 3)}, progress=0.0)
    report.total.backward()
    assert (report.total.item(), leaf.grad.tolist()) == (0, [0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_in_half_precision_are_added_in_float32(term, dtype):
    losses = torch.full((4096,), 32.0, dtype=dtype)
    assert term(losses).value.item() == 32
    assert term(LossSum(torch.tensor(32.0, dtype=dtype), 1)).total.dtype == torch.float32


def test_a_sum_and_its_count_in_a_plain_tuple_are_reported(term):
    with pytest.raises(
        OutputsError, match=r"^student\.losses: must be floating-point, got torch\.int64\. .*LossSum\(total, count\)"
    ):
        term((torch.tensor(12.0), torch.tensor(4)))
