"""The student's weights on disk: whole or not at all."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_student, weights
from torch import nn

from kdplug.engine.checkpoint import checkpoint
from kdplug.engine.checkpoint.checkpoint import Checkpoints, begin, latest
from kdplug.engine.checkpoint.weights import load_student
from kdplug.errors import RunError

ALONE = SimpleNamespace(is_main_process=True, process_index=0, wait_for_everyone=lambda: None)


def save_student(student, folder, step, keep=None):
    modules = {"student": student, "objective": nn.Linear(2, 2)}
    return Checkpoints(folder, "a run", keep).write(step, modules, {"note": 1}, {}, ALONE)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


class Talkative(nn.Linear):
    def get_extra_state(self):
        return {"note": "text"}


def test_what_is_saved_is_the_state_dict(tmp_path):
    student = make_student()
    path = save_student(student, tmp_path, 7)
    assert path == tmp_path / "step-7" / "student.safetensors"
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in load_file(path).items())
    assert load_file(path).keys() == student.state_dict().keys()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_loaded_is_what_was_saved(tmp_path, what):
    student, other = make_student(), make_student()
    nn.init.zeros_(other.head.weight)
    path = save_student(student, tmp_path, 1)
    load_student(other, path if what == "file" else path.parent)
    assert torch.equal(weights(other), weights(student))


def test_a_finished_student_is_compared_with_the_checksum_next_to_it(tmp_path):
    file = save_student(make_student(), tmp_path, 1).rename(tmp_path / "student.safetensors")
    (tmp_path / "SHA256SUMS").write_text(f"{sha256(file.read_bytes()).hexdigest()}  student.safetensors\n")
    load_student(make_student(), tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        RunError, match=r"student\.safetensors is damaged: its SHA-256 differs from the one in .*SHA256SUMS"
    ):
        load_student(make_student(), tmp_path)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    student, other = Tied(), Tied()
    path = save_student(student, tmp_path, 1)
    load_student(other, path)
    assert len(load_file(path)) == 1
    assert torch.equal(other.head.weight, student.embedding.weight)
    assert other.head.weight is other.embedding.weight


class Transposed(nn.Module):
    """Its decoder is the transpose of its encoder, in the same memory."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Parameter(torch.randn(4, 3))
        self.decoder = nn.Parameter(self.encoder.detach().T)


class Sliced(nn.Module):
    """Its weights are overlapping parts of one tensor that is in no state dict."""

    def __init__(self):
        super().__init__()
        whole = torch.randn(10)
        self.first, self.second = nn.Parameter(whole[:6]), nn.Parameter(whole[4:])


class Strided(nn.Module):
    """Its weight is every other column of a tensor, and a buffer the tensor itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("whole", torch.randn(4, 6))
        self.weight = nn.Parameter(self.whole[:, ::2].T)


@pytest.mark.parametrize("make", [Transposed, Sliced, Strided])
def test_weights_that_are_views_of_shared_memory_are_saved_and_come_back_as_views(tmp_path, make):
    student, other = make(), make()
    load_student(other, save_student(student, tmp_path, 1))
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in other.state_dict().items())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert sum(value.count_nonzero() for value in other.state_dict().values()) == (12 if make is Strided else 0)


def test_tensors_that_are_not_contiguous_are_saved(tmp_path):
    student = nn.Linear(3, 2)
    student.weight.data = torch.arange(6.0).view(3, 2).T
    assert torch.equal(load_file(save_student(student, tmp_path, 1))["weight"], student.weight)


def test_a_checkpoint_that_is_there_already_is_replaced(tmp_path):
    student = make_student()
    save_student(student, tmp_path, 1)
    nn.init.zeros_(student.head.weight)
    path = save_student(student, tmp_path, 1)
    assert not load_file(path)["head.weight"].any()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("moment", ["write_student", "_flush", "_rename"])
def test_a_write_that_fails_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch, moment):
    student = make_student()
    before = weights(student)
    path = save_student(student, tmp_path, 1)
    nn.init.zeros_(student.head.weight)

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, moment, fail)
    with pytest.raises(RunError, match=r"cannot write the checkpoint .*no space left"):
        save_student(student, tmp_path, 1)
    load_student(student, path)
    assert torch.equal(weights(student), before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]


def test_a_rename_that_fails_halfway_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    path, rename = save_student(make_student(), tmp_path, 1), Path.rename

    def fail(self, target):
        if self.suffix == ".tmp":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match=r"cannot write the checkpoint .*no space left"):
        save_student(make_student(), tmp_path, 1)
    assert path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]


def test_the_folder_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    flush, rename = checkpoint._flush, checkpoint._rename
    monkeypatch.setattr(checkpoint, "_flush", lambda path: (seen.append(path.name), flush(path)))
    monkeypatch.setattr(checkpoint, "_rename", lambda old, new: (seen.append("rename"), rename(old, new)))
    save_student(make_student(), tmp_path, 1)
    *files, folder, rename, parent = seen
    assert {"student.safetensors", "objective.safetensors", "run.json", "process-0.json"} <= set(files)
    assert (folder, rename, parent) == (".step-1.tmp", "rename", tmp_path.name)


def test_state_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(RunError, match="'_extra_state', a dict; only tensors can be saved"):
        save_student(Talkative(2, 2), tmp_path, 1)


def test_weights_of_another_model_are_an_error_that_names_the_file(tmp_path):
    path = save_student(nn.Linear(2, 2), tmp_path, 1)
    with pytest.raises(RunError, match=r"student\.safetensors does not match the student"):
        load_student(make_student(), path)


def test_only_the_last_checkpoints_stay_where_that_is_asked_for(tmp_path):
    for step in (2, 10, 11):
        save_student(make_student(), tmp_path, step, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-10", "step-11"]


def test_checkpoints_of_later_steps_do_not_count_among_the_last(tmp_path):
    """They are there if a run resumes from an earlier one that the user named."""
    for step in (10, 11, 2, 3, 4):
        save_student(make_student(), tmp_path, step, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-10", "step-11", "step-3", "step-4"]


def test_the_latest_checkpoint_is_the_one_of_the_highest_step_of_this_run(tmp_path):
    for step in (9, 10):
        save_student(make_student(), tmp_path, step)
    begin(tmp_path, is_main=True, name="a run")
    assert latest(tmp_path) == tmp_path / "step-10"


def test_checkpoints_that_another_run_left_are_not_gone_on_from(tmp_path):
    save_student(make_student(), tmp_path, 9)
    begin(tmp_path, is_main=True)
    assert latest(tmp_path) is None


def test_a_folder_that_a_kill_left_half_written_is_no_checkpoint(tmp_path):
    begin(tmp_path, is_main=True, name="a run")
    path = save_student(make_student(), tmp_path, 1)
    path.parent.rename(tmp_path / ".step-1.tmp")
    assert latest(tmp_path) is None
