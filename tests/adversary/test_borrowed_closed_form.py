"""A loss built on another one: its own value counts, never the closed form of the other."""

from __future__ import annotations

import functools

import pytest
import torch

import kdplug
from kdplug.contracts.loss import declares
from kdplug.testing import plugin_site

_MODULE = """
    import functools

    import torch

    import kdplug


    def _rows(student, teacher, temperature):
        values = (student - teacher).square().sum(-1)
        student.sub_(teacher).mul_(2)
        return values


    @kdplug.closed_form(_rows)
    def squared(student_logits, teacher_logits) -> kdplug.LossSum:
        difference = student_logits - teacher_logits
        return kdplug.LossSum(difference.square().sum(), len(difference))


    @functools.wraps(squared)
    def wrapped(*args):
        total, count = squared(*args)
        return kdplug.LossSum(total * 3, count)


    class Squared(torch.nn.Module):
        def forward(self, student_logits, teacher_logits) -> kdplug.LossSum:
            return squared(student_logits, teacher_logits)

        def closed_form(self, student, teacher, temperature):
            return _rows(student, teacher, temperature)


    class Derived(Squared):
        def forward(self, student_logits, teacher_logits) -> kdplug.LossSum:
            total, count = squared(student_logits, teacher_logits)
            return kdplug.LossSum(total * 3, count)


    class Kept(Squared):
        pass
"""
_NAMES = {name.lower(): f"borrowed:{name}" for name in ("squared", "wrapped", "Derived", "Kept")}


@pytest.mark.attack("a loss that wraps or derives from one with a closed form")
@pytest.mark.parametrize("name", sorted(_NAMES))
def test_factored_logits_give_the_loss_that_dense_ones_give(name):
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4), torch.randn(6, 9)
    with plugin_site("kdplug-borrowed", entry_points={"kdplug.losses": _NAMES}, files={"borrowed.py": _MODULE}):
        objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type=name, logit_chunk=2))
        found = []
        for logits in (hidden @ weight.T, kdplug.FactoredLogits(hidden, weight)):
            total = objective(student={"logits": logits}, teacher={"logits": target}, progress=0.0).total
            found.append((total.detach(), *torch.autograd.grad(total, hidden)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.attack("a loss that wraps one with declarations")
def test_a_wrapper_does_not_inherit_a_declaration():
    @kdplug.coarsens
    @kdplug.takes_numbers
    @kdplug.mean_over_items
    def declared(student_logits, teacher_logits):
        return (student_logits - teacher_logits).square().mean()

    @functools.wraps(declared)
    def wrapped(student_logits, teacher_logits):
        return declared(student_logits, teacher_logits).sqrt()

    names = ("coarsens", "takes_numbers", "mean_over_items")
    assert [declares(declared, name) for name in names] == [True] * 3
    assert [declares(wrapped, name) for name in names] == [False] * 3
    assert declares(kdplug.coarsens(wrapped), "coarsens")
