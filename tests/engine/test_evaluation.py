"""Evaluation while training: it sees, ranks and stops, and changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from poisoned import Poisoned
from small_run import make_batches, make_distiller, make_student, sgd, weights
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from kdplug.engine.evaluation import Evaluation, Standing
from kdplug.errors import ConfigError, RunError


def labelled(batch, outputs):
    return {**outputs, "labels": (batch[:, 0] > 0).long()}


def run(folder, *, evaluation=None, student=None, epochs=3, training=None, options=None, **more):
    torch.manual_seed(0)
    student = make_student(dropout=0.2) if student is None else student
    distiller = make_distiller(
        folder,
        student,
        training={"ckpt_frequency": 1, "seed": 3, **(training or {})},
        options=options or {},
        adaptors=(None, labelled),
    )
    data = DataLoader(torch.cat(make_batches(4)), batch_size=4, shuffle=True)
    return student, distiller.train(sgd(student), data, num_epochs=epochs, evaluation=evaluation, **more)


def journal(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def rising(values):
    """An evaluation function that returns these values one after another."""
    left = iter(values)
    return lambda model: {"score": next(left)}


def test_evaluating_changes_no_bit_of_the_training(tmp_path):
    loader = DataLoader(torch.cat(make_batches(3)), batch_size=4, shuffle=True)
    metrics = {"accuracy": MulticlassAccuracy(num_classes=3)}
    alone, _ = run(tmp_path / "alone")
    watched, _ = run(tmp_path / "watched", evaluation=Evaluation(dataloader=loader, metrics=metrics, every=1))
    assert torch.equal(weights(watched), weights(alone))


def test_torchmetrics_see_every_example_in_eval_mode(tmp_path):
    batches = make_batches(3)
    accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    student, _ = run(tmp_path, evaluation=Evaluation(dataloader=batches, metrics={"accuracy": accuracy}))
    student.eval()
    hits = [(student(x)["logits"].argmax(-1) == (x[:, 0] > 0)).double() for x in batches]
    assert journal(tmp_path)[-1]["eval/accuracy"] == pytest.approx(torch.cat(hits).mean().item())


def test_a_function_gets_the_student_in_eval_mode_and_training_goes_on_in_train_mode(tmp_path):
    seen = []

    class Student(type(make_student())):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    evaluation = Evaluation(function=lambda model: {"loss": model(torch.ones(1, 4).double())["losses"]}, every=4)
    run(tmp_path, evaluation=evaluation, student=Student(3, seed=1), epochs=2)
    assert seen == [True, True, True, True, False] * 2


def test_the_best_checkpoint_outlives_the_pruning(tmp_path):
    evaluation = Evaluation(function=rising([1, 5, 2, 3]), best="score")
    _, result = run(tmp_path, evaluation=evaluation, epochs=4, training={"keep_last": 1})
    assert result.best == tmp_path / "step-8"
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-16", "step-8"]


def test_an_evaluation_between_checkpoints_that_is_the_best_is_followed_by_one(tmp_path):
    evaluation = Evaluation(function=rising([5, 4, 3, 9, 0, 0]), best="score", every=2)
    run(tmp_path, evaluation=evaluation, training={"ckpt_frequency": 0})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-2", "step-8"]


def test_less_is_better_where_that_is_said(tmp_path):
    _, result = run(tmp_path, evaluation=Evaluation(function=rising([3, 1, 2]), best="score", mode="min"))
    assert result.best == tmp_path / "step-8"


def test_a_run_stops_when_patience_ends(tmp_path):
    evaluation = Evaluation(function=rising([1, 2, 0, 2, 9]), best="score", patience=2)
    _, result = run(tmp_path, evaluation=evaluation, epochs=9)
    assert (result.step, result.stopped_early, result.best) == (16, True, tmp_path / "step-8")


def test_a_run_that_stops_early_prints_the_metric_its_best_value_and_the_step(tmp_path, capfd):
    evaluation = Evaluation(function=rising([1, 2.5, 0, 2, 9]), best="score", patience=2)
    best = tmp_path / "step-8"
    line = f"Stopped early at step 16 of 36: 'score' did not improve in 2 evaluations; best: 2.5, in {best}\n"
    run(tmp_path, evaluation=evaluation, epochs=9, options={"show_progress": True})
    assert capfd.readouterr().err.count(line) == 1
    run(tmp_path, evaluation=evaluation, epochs=9, options={"show_progress": True}, resume="auto")
    assert capfd.readouterr().err.count(line) == 1


def test_a_run_that_stopped_early_stays_stopped_when_it_is_gone_on_with(tmp_path):
    evaluation = Evaluation(function=rising([2, 1]), best="score", patience=1)
    run(tmp_path, evaluation=evaluation, epochs=9)
    _, result = run(tmp_path, evaluation=evaluation, epochs=9, resume="auto")
    assert (result.step, result.stopped_early, result.best) == (8, True, tmp_path / "step-4")


def test_nan_is_never_the_best():
    standing = Standing()
    assert not standing.take(float("nan"), 1, "max")
    assert standing.take(0.1, 2, "max")
    assert not standing.take(float("nan"), 3, "max")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "evaluation: pass either a dataloader with metrics, or a function"),
        ({"dataloader": []}, "evaluation: pass either a dataloader with metrics, or a function"),
        (
            {"function": dict, "patience": 2},
            "evaluation.patience: needs 'best': the name of the metric that must improve",
        ),
        ({"function": dict, "every": 0}, "evaluation.every: must be a whole number of at least 1, got 0"),
        ({"function": dict, "mode": "up"}, "evaluation.mode: must be 'max' or 'min', got 'up'"),
        (
            {"dataloader": [], "metrics": {"accuracy": MulticlassAccuracy(num_classes=3)}, "best": "acuracy"},
            "evaluation.best: unknown metric 'acuracy'. Metrics of the evaluation: accuracy. Did you mean 'accuracy'?",
        ),
    ],
)
def test_what_cannot_be_meant_is_an_error(options, message):
    with pytest.raises(ConfigError) as raised:
        Evaluation(**options)
    assert str(raised.value) == message


def test_metrics_without_labels_are_an_error_that_says_what_to_return(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student)
    evaluation = Evaluation(dataloader=make_batches(1), metrics={"accuracy": MulticlassAccuracy(num_classes=3)})
    with pytest.raises(ConfigError, match="the student's adaptor returned no labels"):
        distiller.train(sgd(student), make_batches(2), num_epochs=1, evaluation=evaluation)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"ckpt_steps": 1})
    with pytest.raises(
        RunError, match=r"^step 3: the norm of the gradient is nan.*; the last good checkpoint is .*step-2$"
    ):
        distiller.train(sgd(student), make_batches(5), num_steps=5)
    assert torch.isfinite(weights(student)).all()


def test_a_gradient_that_nobody_looked_at_is_found_out_by_the_next_loss(tmp_path):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 0})
    expected = (
        r"^step 4: the total loss is nan .*; the weights are no longer finite: an earlier gradient was not finite; "
    )
    with pytest.raises(RunError, match=expected + "there is no checkpoint yet$"):
        distiller.train(sgd(student), make_batches(5), num_steps=5)


def test_the_last_gradient_of_a_run_is_looked_at(tmp_path):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 0})
    with pytest.raises(RunError, match=r"^step 3: the norm of the gradient is nan"):
        distiller.train(sgd(student), make_batches(3), num_epochs=1)
    assert torch.isfinite(weights(student)).all()


def test_a_gradient_is_looked_at_before_its_student_may_become_the_best(tmp_path):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"ckpt_frequency": 0})
    evaluation = Evaluation(function=rising([1, 2, 3]), best="score", every=3)
    with pytest.raises(RunError, match=r"^step 3: the norm of the gradient is nan"):
        distiller.train(sgd(student), make_batches(5), num_epochs=1, evaluation=evaluation)
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_is_not_finite_is_skipped_where_that_is_asked_for(tmp_path, clip):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"on_nonfinite": "skip"})
    result = distiller.train(sgd(student), make_batches(5), num_epochs=1, max_grad_norm=clip)
    assert (result.step, result.skipped) == (5, 1)
    assert torch.isfinite(weights(student)).all()


def test_a_loss_that_is_not_finite_is_skipped_where_that_is_asked_for(tmp_path):
    batches, student = make_batches(4), make_student()
    batches[1][0, 0] = float("nan")
    distiller = make_distiller(tmp_path, student, training={"on_nonfinite": "skip"})
    result = distiller.train(sgd(student), DataLoader(TensorDataset(torch.cat(batches)), batch_size=4), num_epochs=1)
    assert (result.step, result.skipped) == (4, 1)
    assert torch.isfinite(weights(student)).all()


def test_an_evaluation_that_follows_checkpoints_in_a_run_without_any_is_warned_of(tmp_path):
    evaluation = Evaluation(function=lambda student: {"score": 1.0})
    with pytest.warns(UserWarning, match=r"^the evaluation never runs: .* ckpt_frequency=0 writes none"):
        run(tmp_path, evaluation=evaluation, training={"ckpt_frequency": 0})
