"""A run that is told to stop."""

from __future__ import annotations

import signal

import pytest
from killer import Killer
from poisoned import Poisoned
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.errors import RunError


class Teller(Killer):
    """Sends the process a SIGTERM after ``step`` optimizer steps."""

    def step_end(self, run, step, report):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_one_process_stops_after_the_step_at_hand_whether_or_not_it_logs_there(tmp_path):
    training, student = {"logging_steps": 100, "ckpt_steps": 1000}, make_student()
    distiller = make_distiller(tmp_path, student, training=training, options={"observers": [Teller(3)]})
    with pytest.raises(SystemExit) as ended:
        distiller.train(sgd(student), make_batches(5), num_steps=20)
    assert ended.value.code == 143
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-3"]


def test_a_student_that_was_spoiled_is_not_saved(tmp_path):
    student = Poisoned()
    distiller = make_distiller(tmp_path, student, training={"ckpt_steps": 2}, options={"observers": [Teller(3)]})
    with pytest.raises(RunError, match=r"^step 3: the norm of the weights is nan, although the loss was finite"):
        distiller.train(sgd(student), make_batches(5), num_steps=5)
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-2"]
