"""No command is silent while a model, the data or other code of the user takes long."""

from __future__ import annotations

import json

import pytest
import torch
from listener import listening
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import kdplug
from kdplug.cli.app import app


@pytest.fixture
def listener(capfd, monkeypatch):
    with listening(capfd) as made:
        monkeypatch.setattr(Slow, "listener", made)
        yield made


class Slow:
    """Something whose code waits for the listener of the test."""

    listener = None

    def wait(self, what):
        Slow.listener.wait(what)


class Model(nn.Linear, Slow):
    def forward(self, x):
        self.wait("forward")
        return super().forward(x)


class Rows(Dataset, Slow):
    def __init__(self, count):
        self.rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        self.wait("read")
        return self.rows[place]

    def fingerprint(self):
        self.wait("fingerprint of data")
        return [len(self.rows)]


class SlowTask(Slow):
    metric = "accuracy"
    starts_student = True

    def about(self):
        return "Numbers."

    def expect(self, reads):
        self.wait("expect")

    def check(self):
        self.wait("check")

    def build_teacher(self):
        self.wait("build_teacher")
        return Model(4, 2)

    def teacher_fit(self):
        return {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}

    def build_student(self):
        self.wait("build_student")
        return Model(4, 2)

    def start_student(self, student, teacher):
        self.wait("start_student")

    def data(self, part):
        self.wait("data")
        return Rows(6 if part == "test" else 8)

    def collate(self, examples):
        self.wait("collate")
        return (torch.stack(examples),)

    def teacher_adaptor(self, batch, outputs):
        self.wait("adaptor")
        truth = (batch[0].sum(dim=-1) > 0).long()
        return {"logits": outputs, "losses": functional.cross_entropy(outputs, truth, reduction="none")}

    student_adaptor = teacher_adaptor

    def evaluate(self, model, batches):
        self.wait("start of evaluate")
        found = [model(*batch) for batch in batches]
        self.wait("end of evaluate")
        return {"accuracy": float(len(found))}

    def fingerprint(self):
        self.wait("fingerprint of the task")
        return {"of": "numbers"}

    def review_data(self):
        self.wait("review_data")
        return ()

    def save_student(self, student, folder, record):
        self.wait("save_student")


def soft_cross_entropy(student_logits, teacher_logits):
    return -(teacher_logits.softmax(-1) * student_logits.log_softmax(-1)).sum(-1).mean()


@pytest.fixture
def command(listener, no_plugins, tmp_path):
    """Runs ``kdplug`` with a recipe for a task that is slow everywhere."""
    kdplug.tasks.register("slow")(SlowTask)
    kdplug.losses.register("soft")(soft_cross_entropy)
    recipe = tmp_path / "recipe.json"
    training = {"num_epochs": 1, "batch_size": 4, "device": "cpu"}
    distillation = {"kd_loss_type": "soft"}
    data = {"task": "slow", "distillation": distillation, "training": training, "output_dir": str(tmp_path / "out")}
    recipe.write_text(json.dumps(data))

    def run(name, *words):
        app([name, str(recipe), *map(str, words)], standalone_mode=False)

    return run


def test_a_run_that_resumes_is_never_silent(command):
    command("run")
    command("run", "--resume")


def test_a_plan_is_never_silent(command):
    command("plan")


def test_a_cache_and_a_run_from_it_are_never_silent(command, tmp_path):
    folder = tmp_path / "cache"
    command("cache", "--out", folder)
    command("cache", "--out", folder)
    cached = ("--set", f"training.teacher_cache={folder}", "--set", "distillation.is_caching_logits=true")
    command("plan", *cached)
    command("run", *cached)


def test_a_new_recipe_from_data_is_never_silent(listener, no_plugins, tmp_path):
    def guess(data, teacher):
        listener.wait("guess")

    task = type("Guessing", (SlowTask,), {"new_recipe": {"guess": guess}})
    kdplug.tasks.register("slow")(task)
    app(["new", str(tmp_path / "new.yaml"), "--from", str(tmp_path)], standalone_mode=False)
