"""A capture, or a run with one, that was interrupted goes on to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cache_scene import Rowwise, loader, run
from killer import Killed, Killer
from small_run import make_student, sgd, weights

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.engine.cache import layout


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_killed_run_with_a_cache_goes_on_to_the_same_bits(tmp_path, teacher, on_disk, workers):
    folder = {"teacher_cache": str(tmp_path / "cache")} if on_disk else {}
    training = {"ckpt_frequency": 2, "gradient_accumulation_steps": 2, **folder}

    def go(name, **more):
        return run(tmp_path / name, teacher, loader(num_workers=workers), caching=True, training=training, **more)

    whole = go("whole")
    with pytest.raises(Killed):
        go("killed", options={"observers": [Killer(5)]})
    assert torch.equal(whole, go("killed", train={"resume": "auto"}))


def test_a_folder_serves_the_next_process(tmp_path, teacher):
    folder = {"teacher_cache": str(tmp_path / "cache")}
    first = run(tmp_path / "1", teacher, loader(), caching=True, training=folder)
    assert torch.equal(first, run(tmp_path / "2", teacher, loader(), caching=True, training=folder))
    assert teacher.calls == 6


def small_shards(monkeypatch):
    monkeypatch.setattr(layout, "SHARD_BATCHES", 2)


def test_an_interrupted_capture_keeps_its_shards_and_goes_on(tmp_path, teacher, monkeypatch):
    small_shards(monkeypatch)
    folder = {"teacher_cache": str(tmp_path / "cache")}
    teacher.before = lambda calls: 1 / 0 if calls == 3 else None
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, teacher, loader(), caching=True, training=folder)
    teacher.before = lambda calls: None
    teacher.calls = 0
    cached = run(tmp_path, teacher, loader(), caching=True, training=folder)
    assert teacher.calls == 4
    assert torch.equal(cached, run(tmp_path, teacher, loader(), caching=False))


def several(training, config, teacher, student):
    return MultiTeacherDistiller(training, config, [teacher, Rowwise(4)], student, show_progress=False)


def tasks(training, config, teacher, student):
    made = MultiTaskDistiller(training, config, {"a": teacher, "b": Rowwise(4)}, student, show_progress=False)
    train = made.train
    made.train = lambda optimizer, batches, _, **options: train(optimizer, {"a": batches, "b": loader()}, 6, **options)
    return made


def basic(training, config, teacher, student):
    return BasicDistiller(training, config, teacher, student, show_progress=False)


@pytest.mark.parametrize("make", [basic, several, tasks])
def test_an_interrupted_capture_of_any_distiller_goes_on(tmp_path, teacher, monkeypatch, make):
    small_shards(monkeypatch)
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu", seed=7, teacher_cache=str(tmp_path / "cache"))

    def train():
        student, teacher.calls = make_student(), 0
        distiller = make(training, DistillationConfig(is_caching_logits=True), teacher, student)
        distiller.train(sgd(student), loader(), 2, overwrite=True)
        return weights(student)

    teacher.before = lambda calls: 1 / 0 if calls == 3 else None
    with pytest.raises(ZeroDivisionError):
        train()
    teacher.before = lambda calls: None
    resumed = train()
    assert teacher.calls == 4
    training = training.model_copy(update={"teacher_cache": str(tmp_path / "another")})
    assert torch.equal(resumed, train())
    assert teacher.calls == 6


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from kdplug.engine.cache import layout
from cache_scene import Rowwise, loader, run
layout.SHARD_BATCHES = 1
teacher = Rowwise()
teacher.before = lambda calls: os.kill(os.getpid(), 9) if calls == 4 else None
run(Path(sys.argv[1]), teacher, loader(), caching=True, training={{"teacher_cache": sys.argv[1] + "/cache"}})
"""


def test_a_kill_in_the_middle_of_the_capture_loses_one_shard_at_most(tmp_path, teacher):
    code = KILLED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, check=False, env=os.environ).returncode == -9
    again = run(tmp_path, teacher, loader(), caching=True, training={"teacher_cache": str(tmp_path / "cache")})
    assert teacher.calls == 2
    assert torch.equal(again, run(tmp_path, teacher, loader(), caching=False))
