"""What a loss may return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdplug import LossSum, ShapeError, SignatureError


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (torch.zeros(3), r"got a tensor of shape \[3\]"),
        (torch.zeros(1), r"got a tensor of shape \[1\]"),
        (0.5, r"got float 0\.5"),
        (None, "got NoneType"),
        ((torch.tensor(1.0), 2), "got tuple"),
        ({"loss": torch.tensor(1.0)}, "got dict"),
        (np.float64(0.5), r"got float64 "),
        (LossSum(torch.zeros(3), 3), r"a LossSum whose total is not a scalar tensor: a tensor of shape \[3\]"),
        (LossSum(0.5, 3), r"a LossSum whose total is not a scalar tensor: float 0\.5"),
        (
            LossSum(torch.tensor(1.0), torch.ones(3)),
            r"whose count is neither a number nor a scalar tensor: a tensor of shape",
        ),
        (LossSum(torch.tensor(1.0), -2), "a LossSum whose count must be finite and >= 0, got -2"),
        (LossSum(torch.tensor(1.0), float("inf")), "a LossSum whose count must be finite and >= 0, got inf"),
        (LossSum(torch.tensor(1.0), torch.tensor(-2)), "a LossSum whose count must be finite and >= 0, got -2"),
        (
            LossSum(torch.tensor(1.0), torch.tensor(torch.nan)),
            "a LossSum whose count must be finite and >= 0, got nan",
        ),
        (LossSum(torch.tensor(1.0), None), "whose count is neither a number nor a scalar tensor: NoneType"),
    ],
)
def test_anything_but_a_scalar_or_a_loss_sum_is_an_error_that_names_the_entry(
    build, offer, match, student, teacher, result, shown
):
    matched = build(kd_loss_weight=0, intermediate_matches=[match(loss=offer(lambda student_features: result))])
    with pytest.raises(SignatureError, match=rf"^intermediate_matches\.0\.loss: local:offered .*{shown}"):
        matched(student, teacher)
    on_logits = build(kd_loss_type=offer(lambda student_logits: result))
    with pytest.raises(SignatureError, match=rf"^kd_loss_type: local:offered .*{shown}"):
        on_logits(student, teacher)


@pytest.mark.parametrize("count", [4, 4.0, torch.tensor(4), torch.tensor(4.0)])
def test_a_loss_sum_is_divided_by_its_count(build, offer, student, teacher, count):
    objective = build(kd_loss_weight=3, kd_loss_type=offer(lambda student_logits: LossSum(student_logits.sum(), count)))
    report = objective(student, teacher)
    torch.testing.assert_close(report.total, 3 * student["logits"].sum() / 4)
    assert report.terms["kd_loss"].count == 4


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0)])
@pytest.mark.parametrize("first", [True, False])
def test_a_loss_sum_of_nothing_adds_0(build, offer, match, student, teacher, count, first):
    empty = match(loss=offer(lambda student_features: LossSum(student_features[:0].sum(), count)))
    others = [match(), empty] if not first else [empty, match()]
    report = build(kd_loss_weight=0, intermediate_matches=others)(student, teacher)
    assert report.total == build(kd_loss_weight=0, intermediate_matches=[match()])(student, teacher).total
    report.total.backward()
    assert student["hidden"][0].grad.isfinite().all()


def test_what_a_loss_raises_comes_through(build, offer, student, teacher):
    def broken(student_logits):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck\nin kd_loss_type \(local:offered\)$"):
        build(kd_loss_type=offer(broken))(student, teacher)


def test_a_shape_error_of_a_kd_loss_names_its_field(build, offer, student, teacher):
    def strict(student_logits):
        raise ShapeError("too narrow")

    with pytest.raises(ShapeError, match=r"^kd_loss_type: too narrow$"):
        build(kd_loss_type=offer(strict))(student, teacher)
