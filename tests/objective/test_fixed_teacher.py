"""What is noticed of a teacher that a forward pass changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug.errors import RunError
from kdplug.objective.teacher import FixedTeacher


class Net(nn.Module):
    def __init__(self, buffer, persistent=True):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.inner.register_buffer("kept", buffer, persistent=persistent)


def passed(model, change, passes=1):
    """Passes during which ``change`` is done to the model."""
    fixed = FixedTeacher(model.eval())
    for _ in range(passes):
        fixed.before()
        change(model)
        fixed.after()
    return fixed


def put(model, place, value):
    model.inner.kept[place] = value


BUFFERS = {
    str(buffer.dtype): buffer
    for buffer in (
        torch.zeros(3),
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex128),
        torch.full((3,), torch.nan),
    )
}


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
def test_a_change_of_one_value_of_any_type_is_noticed(buffer):
    with pytest.raises(RunError, match=r"a forward pass of the teacher changed its buffer 'inner.kept'"):
        passed(Net(buffer.clone()), lambda model: put(model, 1, 1))


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
def test_nothing_is_said_where_nothing_changes(buffer):
    passed(Net(buffer), lambda model: None, passes=5)


def test_a_buffer_that_is_replaced_is_noticed():
    def change(model):
        model.inner.kept = model.inner.kept + 1

    with pytest.raises(RunError, match=r"'inner\.kept'"):
        passed(Net(torch.zeros(2)), change)


def test_a_buffer_without_memory_is_left_alone():
    passed(Net(torch.zeros(2, device="meta")), lambda model: None)


def test_memory_that_is_not_part_of_the_model_may_change():
    passed(Net(torch.zeros(2), persistent=False), lambda model: put(model, 0, 1), passes=5)


def test_a_buffer_that_a_first_pass_makes_may_be_there():
    passed(Net(None), lambda model: model.inner.register_buffer("made", torch.ones(1)), passes=5)


def in_place(model):
    with torch.no_grad():
        model.inner[0].weight[0, 0] += 1


def through_data(model):
    model.inner[0].weight.data[0, 0] += 1


def replaced(model):
    model.inner[0].weight = nn.Parameter(model.inner[0].weight + 1)


def with_other_data(model):
    model.inner[0].weight.data = model.inner[0].weight.data + 1


@pytest.mark.parametrize("change", [in_place, through_data, replaced, with_other_data])
def test_a_forward_pass_that_changes_a_parameter_is_noticed(change):
    with pytest.raises(
        RunError,
        match=r"the teacher changed its parameter 'inner\.0\.weight', .* remove the code in forward that writes to",
    ):
        passed(Net(None), change)


@pytest.mark.parametrize("done", [1, 2])
def test_a_parameter_that_changes_between_passes_is_noticed(done):
    model = Net(None)
    fixed = passed(model, lambda model: None, passes=done)
    through_data(model)
    with pytest.raises(RunError, match=r"'s parameter 'inner\.0\.weight' changed between two forward passes"):
        fixed.before()


def test_a_parameter_that_a_first_pass_makes_may_be_there():
    model = Net(None)
    model.lazy = nn.LazyLinear(2)
    passed(model, lambda model: model.lazy(torch.ones(1, 3)), passes=5)


def test_a_parameter_is_summed_in_chunks(monkeypatch):
    monkeypatch.setattr("kdplug.objective.teacher._CHUNK", 3)
    model = Net(None)
    model.scale, model.none = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))
    model.turned = nn.Parameter(torch.zeros(5, 7).t())
    passed(model, lambda model: None, passes=5)
    with pytest.raises(RunError, match="turned"):
        passed(model, lambda model: model.turned.data[6, 4].add_(1))


def sharing(teacher):
    """A student with a buffer in the teacher's memory."""
    student = nn.Module()
    student.register_buffer("seen", teacher.inner.kept[1:])
    return student


def test_memory_of_a_model_that_the_student_shares_may_not_change():
    teacher = Net(torch.zeros(3), persistent=False).eval()
    student = sharing(teacher)
    fixed = FixedTeacher(teacher, student=student)
    fixed.before()
    fixed.after()
    student.seen.add_(1)
    with pytest.raises(RunError, match=r"'s non-persistent buffer 'inner\.kept' changed between two forward passes"):
        fixed.before()
    fixed = FixedTeacher(teacher, student=student)
    fixed.before()
    teacher.inner.kept.add_(1)
    with pytest.raises(RunError, match=r"changed its non-persistent buffer 'inner\.kept', .* give each model its own"):
        fixed.after()


def test_a_shared_cache_that_grows_may_do_so():
    """As rotary embeddings do: the table is computed again for longer inputs, and the buffer replaced."""
    teacher = Net(torch.zeros(3), persistent=False).eval()
    student = nn.Module()
    student.inner = teacher.inner
    fixed = FixedTeacher(teacher, student=student)
    for length in range(4, 9):
        fixed.before()
        teacher.inner.kept = torch.arange(float(length))
        fixed.after()
        student.inner.kept = torch.arange(2.0 * length)


def test_batch_norm_in_eval_mode_changes_nothing():
    model = Net(None)
    model.norm = nn.BatchNorm1d(2)
    passed(model, lambda model: model.norm(torch.randn(4, 2)), passes=5)


@pytest.mark.parametrize("done", [1, 2])
def test_what_changes_between_passes_is_noticed(done):
    model = Net(torch.zeros(2))
    fixed = passed(model, lambda model: None, passes=done)
    put(model, 0, 1)
    with pytest.raises(RunError, match=r"the teacher's buffer 'inner\.kept' changed between two forward passes"):
        fixed.before()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda model: model.train(), r"Net and 3 more modules are in train mode"),
        (lambda model: model.inner[1].train(), r"inner\.1 \(Dropout\) is in train mode"),
    ],
)
def test_train_mode_is_noticed_with_its_place(change, where):
    with pytest.raises(RunError, match=where):
        passed(Net(None), change)


def test_buffers_are_waited_for_in_the_first_passes_alone(monkeypatch):
    fixed = passed(Net(torch.zeros(2)), lambda model: None, passes=3)
    monkeypatch.setattr("kdplug.objective.teacher._checksum", lambda tensor: pytest.fail("looked again"))
    assert not fixed.watches_values
    fixed.after()
