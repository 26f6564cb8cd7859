"""Train and eval modes, and frozen teachers, for the length of a run."""

from __future__ import annotations

import pytest
import torch
from small_run import make_student, make_teacher
from torch import nn

from kdplug.engine.forward_state import modes
from kdplug.engine.teacher import Teacher


def flags(model):
    return [module.training for module in model.modules()]


def test_each_submodule_gets_its_own_mode_back():
    student, teacher = make_student(), make_teacher()
    student.dropout.eval()
    before = flags(student), flags(teacher)
    with modes(training=student, evaluating=teacher):
        assert all(flags(student))
        assert not any(flags(teacher))
    assert (flags(student), flags(teacher)) == before


def test_the_modes_come_back_after_an_error():
    student = make_student().eval()
    with pytest.raises(KeyError), modes(training=student):
        raise KeyError
    assert not any(flags(student))


def test_a_module_on_both_sides_is_in_eval_mode():
    shared = nn.Dropout()
    with modes(training=nn.Sequential(shared), evaluating=nn.Sequential(shared)):
        assert not shared.training


def test_a_frozen_teacher_gets_back_what_was_trainable_and_only_that():
    model = make_teacher()
    model.head.requires_grad_(False)
    with Teacher(model).frozen():
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]


def test_what_a_teacher_returns_carries_no_gradient_and_may_be_saved_for_a_backward_pass():
    """Inference tensors may not, which is why the teacher does not run under inference mode."""
    student = torch.ones(2, 3, requires_grad=True, dtype=torch.float64)
    read = Teacher(make_teacher())(torch.ones(2, 4, dtype=torch.float64), {})
    assert not read["logits"].requires_grad
    (student * read["logits"]).sum().backward()
    assert torch.equal(student.grad, read["logits"])


def test_a_teachers_cache_replaces_its_forward_pass():
    def forbidden(*arguments):
        raise AssertionError("the teacher was asked")

    teacher = Teacher(make_teacher(), lambda batch, outputs: (batch, outputs))
    teacher.model.forward = forbidden
    assert teacher("batch", {}, cache="outputs") == ("batch", "outputs")


def test_the_adaptor_of_a_teacher_sees_the_batch_and_what_the_model_made_of_it():
    batch = torch.ones(1, 4, dtype=torch.float64)
    seen = Teacher(make_teacher(), lambda batch, outputs: (batch, outputs["logits"].shape))(batch, {"scale": 2.0})
    assert seen[0] is batch
    assert seen[1] == (1, 3)
