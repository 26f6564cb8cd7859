"""``teacher_update``: the teacher follows the student after each optimizer step, in checkpoints and on all processes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from killer import Killed, Killer
from small_run import Net, make_batches, sgd, weights
from torch import nn
from torch.utils.data import DataLoader
from two_processes import run_in_two_processes

from kdplug import TeacherUpdate
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.engine.run import Run
from kdplug.errors import ConfigError, KdplugError, RunError, SignatureError
from kdplug.host import registry

EMA = {"name": "ema", "decay": 0.9}
KEYS = {"hard_label_weight": 1.0, "kd_loss_type": "mse"}


class Plain(Net):
    """The smallest student, with one loss for each item."""

    def __init__(self, seed=1):
        super().__init__(3, seed)

    def forward(self, x):
        found = super().forward(x)
        return {**found, "losses": found["logits"].square().mean(-1)}


class Normed(nn.Module):
    """A model with batch norm."""

    def __init__(self, seed=1, width=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.base = nn.Linear(4, width).double()
            self.norm = nn.BatchNorm1d(width).double()
            self.head = nn.Linear(width, 3).double()

    def forward(self, x):
        logits = self.head(self.norm(self.base(x)))
        return {"logits": logits, "losses": logits.square().mean(-1)}


def distil(folder, student, teacher, *, update=EMA, batches=None, distiller=GeneralDistiller, observers=(), **options):
    config = DistillationConfig(**KEYS, teacher_update=update)
    made = distiller(
        TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=2, **options.pop("training", {})),
        config,
        teacher,
        student,
        show_progress=False,
        observers=observers,
    )
    made.objective.double()
    made.train(sgd(student), make_batches(6) if batches is None else batches, **{"num_steps": 6, **options})
    return made


def moved(teacher, student, kept):
    return [kept * one + (1 - kept) * two for one, two in zip(teacher, student, strict=True)]


class Recorder:
    """The student's and the teacher's parameters after each step."""

    def __init__(self):
        self.steps = []

    def run_start(self, run: Run):
        self.step_end(run, 0, None)

    def step_end(self, run, step, report):
        self.steps.append([[one.detach().clone() for one in model.parameters()] for model in (run.model, run.teacher)])

    def run_end(self, run, error):
        pass


@pytest.mark.parametrize("distiller", [GeneralDistiller, BasicDistiller])
def test_the_teacher_is_the_moving_average_of_the_student(tmp_path, distiller):
    student, recorder = Plain(), Recorder()
    teacher = copy.deepcopy(student)
    distil(tmp_path, student, teacher, distiller=distiller, observers=[recorder])
    expected = recorder.steps[0][1]
    assert len(recorder.steps) == 7
    for step, (own, theirs) in enumerate(recorder.steps[1:], 1):
        expected = moved(expected, own, min(0.9, 1 - 1 / (step + 1)))
        torch.testing.assert_close(theirs, expected, rtol=1e-12, atol=1e-12)
        assert not torch.equal(own[0], theirs[0])
    assert all(one.requires_grad for one in teacher.parameters())


def test_an_update_gets_the_steps_that_are_done_and_runs_once_in_a_step(tmp_path):
    seen = []

    @registry.teacher_updates.register("seen")
    def note(teacher_tensor, progress, step, total_steps):
        seen.append((progress, step, total_steps))
        return teacher_tensor

    student = Plain()
    training = {"gradient_accumulation_steps": 2}
    distil(tmp_path, student, copy.deepcopy(student), update="seen", num_steps=4, training=training)
    number = len(list(student.parameters()))
    assert seen == [(step / 4, step, 4) for step in range(1, 5) for _ in range(number)]


def test_buffers_are_copied_and_shared_or_equal_tensors_are_left_alone(tmp_path):
    student = Normed()
    teacher = copy.deepcopy(student)
    teacher.base = student.base.requires_grad_(False)
    before = weights(student.base)
    distil(tmp_path, student, teacher)
    assert torch.equal(weights(student.base), before)
    assert torch.equal(teacher.norm.running_mean, student.norm.running_mean)
    assert teacher.norm.num_batches_tracked == student.norm.num_batches_tracked == 6
    assert not torch.equal(teacher.head.weight, student.head.weight)


def test_a_skipped_step_does_not_update_the_teacher(tmp_path):
    batches = make_batches(6)
    batches[2] = batches[2] * float("nan")
    student, recorder = Plain(), Recorder()
    training = {"on_nonfinite": "skip"}
    distil(tmp_path, student, copy.deepcopy(student), batches=batches, training=training, observers=[recorder])
    teachers = [torch.cat([one.flatten() for one in theirs]) for _, theirs in recorder.steps]
    stood = [torch.equal(one, two) for one, two in itertools.pairwise(teachers)]
    assert stood == [False, False, True, False, False, False]
    assert all(one.isfinite().all() for one in teachers)


def test_a_teacher_of_another_architecture_is_an_error_before_training(tmp_path):
    student = Normed()
    before = weights(student)
    other = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(ConfigError, match=r"teacher_update: needs a teacher of the student's architecture") as error:
        distil(tmp_path, student, other)
    assert "0.weight: parameter [3, 4] in the teacher, missing in the student" in str(error.value)
    wider = Normed(width=5)
    with pytest.raises(
        ConfigError, match=r"norm\.running_var: buffer \[5\] in the teacher, buffer \[4\] in the student"
    ):
        distil(tmp_path, student, wider)
    assert torch.equal(weights(student), before)
    assert not list(tmp_path.iterdir())


def test_there_must_be_one_teacher_that_runs_live(tmp_path):
    student = Plain()
    with pytest.raises(ConfigError, match=r"teacher_update: 'ema' changes the teacher in each step.*is_caching_logits"):
        DistillationConfig(teacher_update="ema", is_caching_logits=True)
    training, config = TrainingConfig(output_dir=str(tmp_path)), DistillationConfig(**KEYS, teacher_update="ema")
    with pytest.raises(ConfigError, match=r"teacher_update: is not supported by MultiTeacherDistiller"):
        MultiTeacherDistiller(training, config, [Plain(), Plain()], student)
    with pytest.raises(ConfigError, match=r"teacher_update: is not supported by MultiTaskDistiller"):
        MultiTaskDistiller(training, config, {"a": Plain()}, student)
    alone = DistillationConfig(kd_loss_weight=0, hard_label_weight=1, teacher_update="ema")
    with pytest.raises(ConfigError, match=r"teacher_update: needs a teacher of the student's architecture as model_T"):
        GeneralDistiller(training, alone, None, student)
    x = make_batches(1)[0]
    batches = [{"teacher": x, "student": x, "teacher_cache": {"logits": torch.zeros(4, 3).double()}}] * 6
    with pytest.raises(RunError, match=r"'teacher_cache', but teacher_update changes the teacher"):
        distil(tmp_path, student, copy.deepcopy(student), batches=batches)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (lambda teacher_tensor, student_tensor: student_tensor.flatten()[:1], "must return a tensor"),
        (lambda teacher_tensor, student_tensor: None, "got NoneType"),
        (
            lambda teacher_tensor, student_tensor: student_tensor.zero_(),
            "changed the student's 'inner.weight' in place",
        ),
    ],
)
def test_what_an_update_does_wrong_is_named(tmp_path, update, words):
    registry.teacher_updates.register("wrong")(update)
    student = Plain()
    with pytest.raises(SignatureError, match=r"teacher_update: local:wrong") as error:
        distil(tmp_path, student, copy.deepcopy(student), update="wrong")
    assert words in str(error.value)


def test_an_update_that_keeps_state_is_an_error():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, teacher_tensor, student_tensor):
            return student_tensor

    registry.teacher_updates.register("keeps")(Keeps)
    with pytest.raises(SignatureError, match=r"teacher_update: local:keeps is a module with parameters or buffers"):
        GeneralDistiller(TrainingConfig(), DistillationConfig(teacher_update="keeps"), Plain(), Plain())


def test_a_killed_run_goes_on_with_the_teacher_of_its_checkpoint(tmp_path):
    def run(folder, observers=(), seed=1, **options):
        student = Normed()
        return distil(folder, student, Normed(seed=seed), observers=observers, batches=loader(), num_steps=9, **options)

    def loader():
        data = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))

    whole = run(tmp_path / "whole")
    for step in (3, 5, 6):
        with pytest.raises(Killed):
            run(tmp_path / f"{step}", [Killer(step)])
        again = run(tmp_path / f"{step}", seed=8, resume="auto")  # the start of a teacher that follows does not matter
        for model in ("model_S", "model_T"):
            assert torch.equal(weights(getattr(again, model)), weights(getattr(whole, model)))
    (last,) = (tmp_path / "whole").glob("step-8")
    assert (last / "teacher.safetensors").is_file()


def test_a_checkpoint_without_the_teacher_is_an_error(tmp_path):
    student = Plain()
    with pytest.raises(Killed):
        distil(tmp_path, student, copy.deepcopy(student), update=None, observers=[Killer(3)])
    student = Plain()
    with pytest.raises(RunError, match=r"step-2 contains no weights of the teacher"):
        distil(tmp_path, student, copy.deepcopy(student), resume="auto", resume_changed=True)


def test_in_an_own_loop_the_update_is_called_after_each_step():
    student, config = Plain(), DistillationConfig(teacher_update=EMA)
    teacher = copy.deepcopy(student)
    before, update = weights(teacher), TeacherUpdate(config, teacher, student)
    with torch.no_grad():
        for one in student.parameters():
            one.add_(1)
    update.update(progress=0.1, step=1, total_steps=10)
    torch.testing.assert_close(weights(teacher), before + 0.5)
    with pytest.raises(ConfigError, match=r"teacher_update: is none"):
        TeacherUpdate(DistillationConfig(), teacher, student)
    with pytest.raises(KdplugError, match="progress"):
        update.update(progress=2.0)


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from leave_group import leave_group
from killer import Killed, Killer
from test_updated_teacher import *

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
found = {name: both(folder / name, model) for name, model in MODELS.items()}
try:
    both(folder / "killed", MODELS["plain"], observers=[Killer(4)])
except Killed:
    pass
found["resumed"] = both(folder / "killed", MODELS["plain"], resume="auto")
try:
    distil(folder / "unlike", Plain(), Plain(seed=rank), batches=rows(8))
    found["unlike"] = ""
except RunError as error:
    found["unlike"] = str(error)
torch.save(found, folder / f"{rank}.pt")
leave_group()
"""

MODELS = {"plain": Plain, "normed": Normed}


def rows(batch_size):
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return DataLoader(data, batch_size=batch_size)


def both(folder, model, batch_size=4, **options):
    made = distil(folder, model(), model(), batches=rows(batch_size), num_steps=8, **options)
    return weights(made.model_S), weights(made.model_T)


def test_two_processes_train_the_teacher_of_one_and_it_is_equal_on_both(tmp_path):
    run_in_two_processes(tmp_path, SCRIPT, Path(__file__))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = both(tmp_path / "alone", MODELS["plain"], batch_size=8)
    for name in ("plain", "resumed"):
        for one, other, whole in zip(first[name], second[name], alone, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(first["plain"][1], first["resumed"][1])
    assert torch.equal(first["normed"][1], second["normed"][1])  # the teacher's; the students' statistics differ
    assert "teacher.weights" in first["unlike"]
