"""The loop does what a loop written by hand does, to the last bit that float64 has."""

from __future__ import annotations

import random

import pytest
import torch
from small_run import (
    AUTO,
    MATCH,
    PROJECTED,
    by_hand,
    make_batches,
    make_distiller,
    make_student,
    make_teacher,
    sgd,
    weights,
)
from torch import nn

from kdplug.engine.finite import FiniteWatch
from kdplug.errors import RunError

SCHEDULED = {"kd_loss_weight_scheduler": "linear_decay", "temperature": 3.0, "hard_label_weight": 0.3}


def windows(batches, accumulation, epochs):
    cut = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
    return cut * epochs


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("config", [{}, {"matches": [PROJECTED], **SCHEDULED}], ids=["kd", "everything"])
@pytest.mark.filterwarnings("ignore:hard_label_loss")  # a scalar
def test_the_weights_are_those_of_a_loop_written_by_hand(tmp_path, accumulation, clip, config):
    batches, expected, student = make_batches(7), make_student(), make_student()
    cut = windows(batches, accumulation, 2)
    schedule = lambda step: 1 / (1 + step)  # noqa: E731
    by_hand(expected, cut, len(cut), clip=clip, schedule=schedule, **config)
    torch.manual_seed(0)
    distiller = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": accumulation}, **config)
    result = distiller.train(
        sgd(student),
        batches,
        num_epochs=2,
        max_grad_norm=clip,
        scheduler_class=torch.optim.lr_scheduler.LambdaLR,
        scheduler_args={"lr_lambda": schedule},
    )
    assert result.step == len(cut)
    torch.testing.assert_close(weights(student), weights(expected), rtol=0, atol=1e-14)


def test_steps_train_what_as_many_epochs_do(tmp_path):
    by_epochs, by_steps = make_student(), make_student()
    training = {"gradient_accumulation_steps": 2}
    for student, length in ((by_epochs, {"num_epochs": 2}), (by_steps, {"num_steps": 6})):
        make_distiller(tmp_path, student, training=training).train(
            sgd(student), make_batches(5), **length, overwrite=True
        )
    assert torch.equal(weights(by_epochs), weights(by_steps))


def test_half_an_epoch_ends_in_the_middle_of_the_data(tmp_path):
    """Weakness 2.3: 2.5 epochs ran 2."""
    expected, student, batches = make_student(), make_student(), make_batches(4)
    by_hand(expected, [[batch] for batch in (batches * 3)[:10]], 10)
    result = make_distiller(tmp_path, student).train(sgd(student), batches, num_epochs=2.5)
    assert result.step == 10
    torch.testing.assert_close(weights(student), weights(expected), rtol=0, atol=1e-14)


def test_the_report_is_the_loss_of_the_last_step(tmp_path):
    expected, student, batches = make_student(), make_student(), make_batches(4)
    totals = by_hand(expected, windows(batches, 1, 1), 4, matches=[{**MATCH, "proj": PROJECTED["proj"]}])
    torch.manual_seed(0)
    result = make_distiller(tmp_path, student, matches=[PROJECTED]).train(sgd(student), batches, num_epochs=1)
    assert result.report.total.item() == pytest.approx(totals[-1], rel=1e-12)
    assert not result.report.total.requires_grad
    assert set(result.report.terms) == {"kd_loss", "hidden_hidden_mse_0_0"}


def test_the_report_of_a_window_is_the_mean_over_its_micro_batches(tmp_path):
    students, totals = [make_student() for _ in range(3)], []
    batches = make_batches(2)
    for student, data in zip(students, ([batches[0]], [batches[1]], batches), strict=True):
        distiller = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": len(data)})
        totals.append(distiller.train(sgd(student), data, num_steps=1, overwrite=True).report)
    assert totals[2].total.item() == pytest.approx((totals[0].total + totals[1].total).item() / 2, rel=1e-12)
    assert totals[2].terms["kd_loss"].value.item() == pytest.approx(totals[2].total.item(), rel=1e-12)


def states():
    return torch.get_rng_state(), random.getstate()


def test_global_random_state_is_nobodys_business(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED])
    before = states()
    distiller.train(sgd(student), make_batches(2), num_epochs=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_seed_makes_runs_equal(tmp_path):
    ends = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        student = make_student(dropout=0.5)
        distiller = make_distiller(tmp_path, student, training={"seed": 7})
        distiller.train(sgd(student), make_batches(3), num_epochs=1, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


class Normed(nn.Module):
    """A student with batch statistics and dropout, whose hidden width nobody told."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
        self.head = nn.Linear(3, 3).double()

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.head(hidden), "hidden": [hidden]}


def test_finding_out_a_width_changes_no_batch_statistics_no_order_and_no_randomness(tmp_path):
    torch.manual_seed(1)
    students = [Normed(), Normed()]
    students[1].load_state_dict(students[0].state_dict())
    explicit = {**MATCH, "proj": ["linear", 3, 5]}
    for student, match in zip(students, (explicit, AUTO), strict=True):
        distiller = make_distiller(tmp_path, student, matches=[match])
        with torch.no_grad():
            if match is AUTO:
                distiller.objective.materialize(student=make_outputs(3), teacher=make_outputs(5))
            for parameter in distiller.objective.parameters():
                parameter.fill_(0.1)
        torch.manual_seed(2)
        distiller.train(sgd(student), make_batches(3), num_epochs=1, overwrite=True)
    assert torch.equal(*map(weights, students))


def make_outputs(width):
    return {"logits": torch.zeros(1, 3).double(), "hidden": [torch.zeros(1, width).double()]}


class Counting:
    """A loader that counts how often it was started and what it gave."""

    def __init__(self, batches):
        self.batches, self.started, self.given = batches, 0, 0

    def __iter__(self):
        self.started += 1
        for batch in self.batches:
            self.given += 1
            yield batch

    def __len__(self):
        return len(self.batches)


def test_an_auto_projection_is_made_trained_and_costs_no_batch(tmp_path):
    student, loader = make_student(), Counting(make_batches(3))
    distiller = make_distiller(tmp_path, student, matches=[AUTO])
    optimizer = sgd(student)
    distiller.train(optimizer, loader, num_epochs=1)
    (projection,) = (p for p in distiller.objective.parameters() if p.ndim == 2)
    assert projection.shape == (5, 3)
    assert any(projection is p for p in optimizer.param_groups[1]["params"])
    assert (loader.started, loader.given) == (1, 3)


def test_finding_out_a_width_leaves_batch_statistics_and_randomness_alone_and_needs_no_gradient():
    from kdplug.config.distillation import DistillationConfig
    from kdplug.engine.forward_state import materialize
    from kdplug.engine.teacher import Teacher
    from kdplug.engine.training_module import TrainingModule
    from kdplug.objective.objective import Objective

    student = Normed().train()
    pair = TrainingModule(student, None, Objective(DistillationConfig(intermediate_matches=[AUTO])))
    student.register_forward_hook(lambda module, inputs, output: torch.rand(1) is None or None)
    before, randomness, seen = weights(student), torch.get_rng_state(), []
    pair.objective.materialize = lambda student, teacher, num_examples: seen.append(student["logits"].requires_grad)
    materialize(pair, Teacher(make_teacher()), make_batches(1)[0], {}, torch.device("cpu"))
    assert torch.equal(before, weights(student))
    assert torch.equal(randomness, torch.get_rng_state())
    assert seen == [False]
    assert student.training
    assert student.body[1].num_batches_tracked == 0


def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path):
    """Defect 2.2.2: one such batch turned every weight into nan."""
    batches, student = make_batches(3), make_student()
    batches[1][0, 0] = float("nan")
    distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 3})
    with pytest.raises(
        RunError, match=r"^step 2: the total loss is nan \(kd_loss is nan\); the last good checkpoint is .*step-1$"
    ):
        distiller.train(sgd(student), batches, num_epochs=1)
    assert torch.isfinite(weights(student)).all()
    assert [entry.name for entry in tmp_path.glob("step-*")] == ["step-1"]


@pytest.mark.filterwarnings("ignore:4 of the student's 4 trained parameters got no gradient")
def test_a_parameter_of_the_users_own_in_the_optimizer_is_trained_with_a_fresh_gradient_each_step(tmp_path):
    student, scale = make_student(), torch.nn.Parameter(torch.ones(()).double())
    distiller = make_distiller(
        tmp_path, student, adaptors=(None, lambda batch, outputs: {"logits": scale * outputs["logits"].detach()})
    )
    optimizer, gradients = sgd(student), []
    optimizer.add_param_group({"params": [scale], "lr": 0.0})
    scale.register_hook(gradients.append)
    step = optimizer.step
    optimizer.step = lambda: gradients.append(scale.grad.clone()) or step()
    distiller.train(optimizer, make_batches(3), num_epochs=1)
    assert torch.equal(torch.stack(gradients[0::2]), torch.stack(gradients[1::2]))


def test_a_parameter_outside_the_optimizer_gathers_no_gradient(tmp_path):
    student = make_student()
    with pytest.warns(UserWarning, match="2 of the student's 4"):
        make_distiller(tmp_path, student).train(sgd(student.head), make_batches(3), num_epochs=1)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_losses_are_settled_before_each_log_and_each_save(tmp_path, monkeypatch):
    """On a device losses are only checked then; nothing bad may be saved."""
    student, events = make_student(), []
    monkeypatch.setattr(FiniteWatch, "settle", lambda watch: events.append("settle"))
    distiller = make_distiller(tmp_path, student, training={"logging_steps": 2, "ckpt_frequency": 2})
    optimizer = sgd(student)
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: events.append("step") or step())
    distiller.train(optimizer, make_batches(6), num_epochs=1, callback=lambda model, step: events.append("save"))
    assert " ".join(events) == "step settle step settle step save settle step step settle step save"
