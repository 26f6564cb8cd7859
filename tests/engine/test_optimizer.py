"""What the user's optimizer must hold, and what is added to it."""

from __future__ import annotations

import pytest
import torch
from small_run import make_student, make_teacher, sgd
from torch import nn

from kdplug.engine.optimizer import add_groups, check_student, parameters, unwrap
from kdplug.errors import RunError


@pytest.fixture
def group():
    return {"params": list(nn.Linear(2, 2).parameters()), "lr": 0.5}


def test_a_group_joins_with_its_own_options(group):
    optimizer = sgd(make_student())
    assert add_groups(optimizer, [group]) == 1
    assert optimizer.param_groups[1]["lr"] == 0.5


def test_a_group_that_is_there_already_does_not_join_again(group):
    """Defect 2.1.9: a second train() with the same optimizer and a projection raised ValueError."""
    optimizer = sgd(make_student())
    add_groups(optimizer, [group])
    assert add_groups(optimizer, [group]) == 0
    assert len(optimizer.param_groups) == 2


def test_adding_a_group_leaves_the_callers_group_alone(group):
    before = dict(group)
    add_groups(sgd(make_student()), [group])
    assert group == before


def test_an_optimizer_of_another_model_is_an_error():
    with pytest.raises(RunError, match="holds none of the student's trainable parameters"):
        check_student(sgd(make_teacher()), make_student())


def test_a_student_without_anything_to_train_is_an_error():
    student = make_student().requires_grad_(False)
    with pytest.raises(RunError, match="no trainable parameter"):
        check_student(sgd(student), student)


def test_a_parameter_outside_the_optimizer_is_named():
    student = make_student()
    with pytest.warns(UserWarning, match=r"2 of the student's 4 .*: inner.weight, inner.bias"):
        check_student(sgd(student.head), student)


def test_an_optimizer_that_holds_the_student_passes_in_silence():
    student = make_student()
    check_student(sgd(student), student)


def test_an_optimizer_that_accelerate_prepared_is_unwrapped():
    from kdplug.engine.parallel.process import process

    optimizer = sgd(make_student())
    with process("cpu", "fp32") as accelerator:
        assert unwrap(accelerator.prepare_optimizer(optimizer)) is optimizer
    assert unwrap(optimizer) is optimizer


def test_the_parameters_are_those_of_all_groups(group):
    student = make_student()
    optimizer = sgd(student)
    add_groups(optimizer, [group])
    assert len(parameters(optimizer)) == 6
    assert isinstance(parameters(optimizer)[0], torch.Tensor)
