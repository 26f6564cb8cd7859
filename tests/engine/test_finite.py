"""Losses that are not finite."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.engine.finite import FiniteWatch, check_norm
from kdplug.errors import RunError
from kdplug.objective.report import LossReport, TermValue


def report(**values):
    terms = {name: TermValue(torch.tensor(value), 1, 1.0) for name, value in values.items()}
    return LossReport(torch.stack([term.value for term in terms.values()]).sum(), terms)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_step_and_the_term_are_named(value):
    with pytest.raises(RunError, match=rf"^step 3: the total loss is {value} \(pkd is {value}\)$"):
        FiniteWatch().see(3, report(kd_loss=1.0, pkd=value))


def test_a_sum_that_overflows_says_that_no_term_is_at_fault():
    with pytest.raises(RunError, match="each term is finite, but their weighted sum is not"):
        FiniteWatch().see(1, report(a=3e38, b=3e38))


def test_finite_losses_pass():
    watch = FiniteWatch()
    watch.see(1, report(a=1.0))
    watch.settle()


class Elsewhere(torch.Tensor):
    """A tensor that claims to be on another device, which may not be asked for its value one by one."""

    @property
    def device(self):
        return torch.device("meta")

    @property
    def is_cpu(self):
        return False

    def item(self):
        raise AssertionError("this waits for the device")


def elsewhere(value):
    term = TermValue(torch.tensor(value).as_subclass(Elsewhere), 1, 1.0)
    return LossReport(term.total, {"kd_loss": term})


def test_a_device_is_not_asked_before_the_losses_are_settled():
    watch = FiniteWatch()
    for step in range(1, 6):
        watch.see(step, elsewhere(1.0))
    watch.settle()


def test_settling_names_the_first_bad_step(monkeypatch):
    watch = FiniteWatch()
    for step, value in enumerate([1.0, float("nan"), float("inf")], 1):
        watch.see(step, elsewhere(value))
    monkeypatch.setattr(Elsewhere, "item", torch.Tensor.item)
    with pytest.raises(RunError, match=r"^step 2: the total loss is nan \(kd_loss is nan\)"):
        watch.settle()


def test_a_device_is_asked_at_the_latest_after_a_hundred_steps(monkeypatch):
    watch = FiniteWatch()
    monkeypatch.setattr(Elsewhere, "item", torch.Tensor.item)
    for step in range(1, 100):
        watch.see(step, elsewhere(float("nan")))
    with pytest.raises(RunError, match=r"^step 1:"):
        watch.see(100, elsewhere(1.0))


def test_a_gradient_whose_norm_is_not_finite_stops_the_run():
    with pytest.raises(RunError, match="step 4: the norm of the gradient is inf"):
        check_norm(4, torch.tensor(float("inf")), SimpleNamespace(scaler=None))
    check_norm(4, torch.tensor(1.0), SimpleNamespace(scaler=None))
    check_norm(4, torch.tensor(float("inf")), SimpleNamespace(scaler="meant to overflow now and then"))


def test_a_run_settles_before_it_logs_and_at_its_end(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(FiniteWatch, "see", lambda watch, step, report: told.append(step))
    monkeypatch.setattr(FiniteWatch, "settle", lambda watch: told.append("settled"))
    student = make_student()
    distiller = make_distiller(tmp_path, student, training={"logging_steps": 2, "ckpt_frequency": 0})
    distiller.train(sgd(student), make_batches(5), num_epochs=1)
    assert told == [1, 2, "settled", 3, 4, "settled", 5, "settled"]
