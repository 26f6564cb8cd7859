"""A learning-rate scheduler that was built for fewer steps: an error or a warning, never steps that train nothing in silence."""

from __future__ import annotations

import pytest
from small_run import make_batches, make_distiller, make_student, sgd
from torch.optim import lr_scheduler as lr

from kdplug.errors import RunError


def train(folder, build, steps=6):
    student = make_student()
    optimizer = sgd(student)
    make_distiller(folder, student).train(optimizer, make_batches(steps), num_epochs=1, scheduler=build(optimizer))


@pytest.mark.attack("a learning-rate scheduler that was built for fewer steps")
def test_a_rate_that_stays_0_is_a_warning(tmp_path):
    with pytest.warns(
        UserWarning, match=r"the learning rate has been 0 since step 4 of 6.*LambdaLR built for fewer than 6"
    ):
        train(tmp_path, lambda optimizer: lr.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 3)))


@pytest.mark.attack("a learning-rate scheduler that was built for fewer steps")
def test_a_scheduler_that_refuses_a_step_names_the_steps_of_the_run(tmp_path):
    with pytest.raises(RunError, match=r"OneCycleLR failed after step \d of 6: .* Build it for 6 optimizer steps"):
        train(tmp_path, lambda optimizer: lr.OneCycleLR(optimizer, 0.1, total_steps=2))


@pytest.mark.attack("a learning-rate scheduler that was built for fewer steps")
@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: lr.LambdaLR(optimizer, lambda step: min(1.0, step / 3)),
        lambda optimizer: lr.LambdaLR(optimizer, lambda step: 1 - step / 6),
        lambda optimizer: lr.CosineAnnealingLR(optimizer, 3),
    ],
    ids=["warm-up", "linear", "cosine"],
)
def test_a_rate_that_is_0_once_is_none(tmp_path, build):
    train(tmp_path, build)
