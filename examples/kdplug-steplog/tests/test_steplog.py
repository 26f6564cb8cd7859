"""The log of a real run, and of runs that go wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from kdplug_steplog import EVERY, FILE, StepLog, steplog

import kdplug


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 3))

    def forward(self, x):
        return {"logits": self.layers(x)}


def train(folder, steps=7):
    torch.manual_seed(0)
    student = Net(3)
    config = kdplug.DistillationConfig(kd_loss_type={"name": "ce", "t2": True}, kd_loss_weight=0.5)
    training = kdplug.TrainingConfig(output_dir=str(folder), device="cpu", ckpt_frequency=0)
    distiller = kdplug.GeneralDistiller(training, config, Net(8), student, show_progress=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return distiller.train(optimizer, [torch.randn(5, 4) for _ in range(steps)], num_epochs=1)


def rows(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def run_in(folder, **changes):
    return SimpleNamespace(**{"output_dir": folder, "is_main": True, "step": 0, "progress": 0.5, **changes})


def report(value):
    return SimpleNamespace(total=torch.tensor(value), terms={"kd_loss": SimpleNamespace(value=torch.tensor(value))})


def test_every_step_of_a_distillation_is_there_with_each_term(tmp_path):
    result = train(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert list(rows(tmp_path)[0]) == ["step", "progress", "total", "kd_loss"]
    assert rows(tmp_path)[-1]["total"] == pytest.approx(float(result.report.total))
    assert rows(tmp_path)[-1]["total"] == pytest.approx(rows(tmp_path)[-1]["kd_loss"] / 2)


def test_what_it_writes_does_not_depend_on_how_often_it_reads(tmp_path, monkeypatch):
    found = []
    for every in ("1", "3", "100"):
        monkeypatch.setenv(EVERY, every)
        train(tmp_path / every)
        found.append(rows(tmp_path / every))
    assert found[0] == found[1] == found[2]


def test_a_second_run_in_the_same_folder_starts_a_new_log(tmp_path):
    train(tmp_path)
    train(tmp_path, steps=2)
    assert len(rows(tmp_path)) == 2


def test_tensors_are_read_once_in_a_while(tmp_path, monkeypatch):
    monkeypatch.setenv(EVERY, "2")
    log, run = StepLog(), run_in(tmp_path)
    log.kdplug_run_start(run)
    seen = []
    for step in (1, 2, 3):
        log.kdplug_step_end(run, step, report(1.0))
        seen.append(len(rows(tmp_path)))
    assert seen == [0, 2, 2]


def test_the_steps_before_an_error_are_written(tmp_path):
    log, run = StepLog(), run_in(tmp_path)
    log.kdplug_run_start(run)
    log.kdplug_step_end(run, 1, report(float("nan")))
    log.kdplug_run_end(run)
    assert rows(tmp_path) == [{"step": 1, "progress": 0.5, "total": "nan", "kd_loss": "nan"}]


def test_a_resumed_run_keeps_the_steps_before_it(tmp_path):
    (tmp_path / FILE).write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    StepLog().kdplug_run_start(run_in(tmp_path, step=2))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_only_the_first_process_writes(tmp_path):
    log, run = StepLog(), run_in(tmp_path, is_main=False)
    log.kdplug_run_start(run)
    log.kdplug_step_end(run, 1, report(1.0))
    log.kdplug_run_end(run)
    assert list(tmp_path.iterdir()) == []


def test_no_state_remains_after_a_run(tmp_path):
    train(tmp_path)
    assert steplog.running == {}
