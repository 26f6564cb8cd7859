"""A loss that declares its closed form gives what it gives without, and the engine takes the form where it may."""

from __future__ import annotations

import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from torch import nn

from kdplug import LossSum, SignatureError, SparseLogits, closed_form, coarsens

HEADS = [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 3.0}]
CALLS = []


def squared_rows(student, teacher, temperature, *, power=1.0):
    """Overwrites both, as it may."""
    CALLS.append(student.shape)
    student.sub_(teacher.mul_(1.0)).div_(temperature)
    values = student.square().sum(-1) * power
    student.mul_(2 * power / temperature)
    return values


@closed_form(squared_rows)
def squared(student_logits, teacher_logits, temperature, *, power=1.0) -> LossSum:
    assert not CALLS, "called beside its closed form"
    values = ((student_logits - teacher_logits) / temperature).square().sum(-1) * power
    return LossSum(values.sum(), values.numel())


def kl_rows(student, teacher, temperature):
    q, p = ((one / temperature).log_softmax(-1) for one in (student, teacher))
    values = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1) * temperature**2
    student.copy_((q.exp() - p.exp()) * temperature)
    return values


@closed_form(kl_rows)
@coarsens
def kl(student_logits, teacher_logits, temperature) -> LossSum:
    q, p = ((one / temperature).log_softmax(-1) for one in (student_logits, teacher_logits))
    values = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1) * temperature**2
    return LossSum(values.sum(), values.numel())


@pytest.fixture(autouse=True)
def _fresh():
    CALLS.clear()
    yield
    CALLS.clear()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("factored", [("student", "teacher"), ("student",), ("teacher",)])
@pytest.mark.parametrize("chunk", [1, 5, "auto"])
def test_the_closed_form_replaces_the_loss(offer, head, factored, chunk):
    scene, loss = Scene(head=head), {"name": offer(squared), "power": 0.7}
    expected = scene.run(factored=(), kd_loss_type=loss)
    assert not CALLS
    assert_same(scene.run(factored=factored, kd_loss_type=loss, logit_chunk=chunk), expected)
    assert sum(shape[0] for shape in CALLS) == 12


@pytest.mark.parametrize("k", [1, 4, CLASSES])
def test_it_takes_a_cache_in_as_many_categories(offer, k):
    scene, loss = Scene(head={"softcap": 2.0}), offer(kl)
    teacher = SparseLogits.top(scene.logits("teacher", factored=False), k, 4.0)
    expected = scene.run(factored=(), teacher=teacher, kd_loss_type=loss)
    assert_same(scene.run(teacher=teacher, kd_loss_type=loss, logit_chunk=5), expected)


def test_it_takes_a_shifted_teacher(offer):
    scene, labels = Scene(), torch.arange(12).view(3, 4) % CLASSES
    keys = {"kd_loss_type": offer(squared), "outputs": {"labels": labels}, "probability_shift": True}
    assert_same(_without_calls(scene, keys), scene.run(logit_chunk=5, **keys))


def _without_calls(scene, keys):
    expected = scene.run(factored=(), **keys)
    assert not CALLS
    return expected


def test_a_scheduled_temperature_takes_the_loss_itself(offer):
    offer(lambda student_logits: student_logits[..., 0].exp() + 1, "temperature_schedulers", "own")

    def per_item(student_logits, teacher_logits, temperature) -> LossSum:
        values = ((student_logits - teacher_logits) / temperature.unsqueeze(-1)).square().sum(-1)
        return LossSum(values.sum(), values.numel())

    scene, keys = Scene(), {"kd_loss_type": offer(closed_form(squared_rows)(per_item)), "temperature_scheduler": "own"}
    per_item.closed_form = lambda student, teacher, temperature: pytest.fail("called")
    assert_same(scene.run(**keys), scene.run(factored=(), **keys))


class Halved(nn.Module):
    """A class declares its closed form as a method, which finds the settings where the class keeps them."""

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = share

    def closed_form(self, student, teacher, temperature):
        return squared_rows(student, teacher, temperature, power=self.share)

    def forward(self, student_logits, teacher_logits, temperature):
        return squared(student_logits, teacher_logits, temperature, power=self.share)


def test_a_class_has_it_as_a_method(offer):
    scene, loss = Scene(), {"name": offer(Halved), "share": 0.2}
    expected = scene.run(factored=(), kd_loss_type=loss)
    assert_same(scene.run(kd_loss_type=loss, logit_chunk=5), expected)
    assert CALLS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_widened_a_few_rows_at_a_time(offer, dtype):
    scene, loss = Scene(dtype=dtype), offer(kl)
    expected = scene.run(factored=(), kd_loss_type=loss)
    found = scene.run(kd_loss_type=loss, logit_chunk=5)
    assert {gradient.dtype for gradient in found[1]} == {dtype}
    loose = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    assert_same(found, expected, **loose)


def test_settings_other_than_the_losss_are_refused(offer, build):
    def other(student_logits, teacher_logits, *, share=0.5):
        raise AssertionError("called")

    with pytest.raises(SignatureError, match=r"takes the settings \['power'\], but the loss takes \['share'\]"):
        build(kd_loss_type=offer(closed_form(squared_rows)(other)))


def test_values_that_are_not_one_for_each_row_are_refused(offer):
    def scalar(student, teacher, temperature):
        return student.sum()

    def loss(student_logits, teacher_logits):
        raise AssertionError("called")

    with pytest.raises(SignatureError, match=r"^kd_loss_type: the closed form of local:offered must return one value"):
        Scene().run(kd_loss_type=offer(closed_form(scalar)(loss)))
