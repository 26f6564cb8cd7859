"""No training is silent while the teacher, the data or other code of the user takes long."""

from __future__ import annotations

import pytest
import torch
from cache_scene import Rowwise
from listener import listening
from multi_task_scene import Examples, make
from small_run import Net, make_distiller, make_student, sgd
from torch.optim import SGD
from torch.utils.data import DataLoader

from kdplug import BasicTrainer, Evaluation, TrainingConfig

SHOWN = {"show_progress": True}


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def listener(request, capfd, monkeypatch):
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with listening(capfd) as made:
        yield made


class Rows(Examples):
    """Examples that take long to read."""

    def __init__(self, listener, count=8):
        super().__init__(count)
        self.listener = listener

    def __getitem__(self, index):
        self.listener.wait("read")
        return super().__getitem__(index)

    def fingerprint(self):
        self.listener.wait("fingerprint")
        return len(self)


class Hits:
    """A metric that takes long."""

    def __init__(self, listener):
        self.wait = listener.wait

    def update(self, logits, labels):
        self.wait("update")

    def compute(self):
        self.wait("compute")
        return 1.0

    def reset(self):
        self.wait("reset")

    def to(self, device):
        return self


def slow_teacher(listener):
    teacher = Rowwise()
    teacher.before = lambda calls: listener.wait("teacher")
    return teacher


def slow_optimizer(listener, student):
    class Slow(SGD):
        def step(self, closure=None):
            listener.wait("optimizer")
            return super().step(closure)

    return Slow(student.parameters(), lr=0.1)


def labelled(batch, outputs):
    return {**outputs, "labels": torch.zeros(len(batch), dtype=torch.long)}


@pytest.mark.parametrize("evaluated", ["function", "metrics"])
def test_a_distillation_with_evaluations_and_a_callback_is_never_silent(tmp_path, listener, evaluated):
    def score(model):
        listener.wait("evaluation")
        return {"score": 1.0}

    def callback(model, step):
        listener.wait("callback")

    student, loader = make_student(), DataLoader(Rows(listener), 4)
    if evaluated == "function":
        evaluation = Evaluation(function=score, best="score")
    else:
        evaluation = Evaluation(dataloader=loader, metrics={"hits": Hits(listener)})
    distiller = make_distiller(
        tmp_path, listener.slow(student), slow_teacher(listener), adaptors=(None, labelled), options=SHOWN
    )
    optimizer = slow_optimizer(listener, student)
    distiller.train(optimizer, loader, num_epochs=2, callback=callback, evaluation=evaluation)


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_distillation_that_caches_its_teacher_is_never_silent(tmp_path, listener, in_folder):
    for _ in range(2):
        student, loader = make_student(), DataLoader(Rows(listener), 4, shuffle=True)
        training = {"teacher_cache": str(tmp_path / "cache")} if in_folder else {}
        distiller = make_distiller(
            tmp_path, student, slow_teacher(listener), training=training, is_caching_logits=True, options=SHOWN
        )
        distiller.train(sgd(student), loader, num_epochs=1, overwrite=True)


def test_filling_a_cache_is_never_silent(tmp_path, listener):
    training = {"teacher_cache": str(tmp_path / "cache")}
    distiller = make_distiller(
        tmp_path, make_student(), slow_teacher(listener), training=training, is_caching_logits=True, options=SHOWN
    )
    distiller.fill_teacher_cache(DataLoader(Rows(listener), 4))


def test_a_distillation_of_several_tasks_is_never_silent(tmp_path, listener):
    student, teachers = make_student(), {"a": listener.slow(Net(5, seed=2)), "b": listener.slow(Net(5, seed=4))}
    loaders = {task: DataLoader(Rows(listener), 4) for task in teachers}
    make(tmp_path, student, teachers, shown=True).train(sgd(student), loaders, 4)


def test_a_training_on_labels_is_never_silent(tmp_path, listener):
    student = listener.slow(make_student())
    trainer = BasicTrainer(TrainingConfig(output_dir=str(tmp_path), device="cpu"), student, lambda _, found: found)
    trainer.train(sgd(student), DataLoader(Rows(listener), 4), num_epochs=1)
