"""Checkpoints that a disk, a copy or an editor damaged: never used in silence, and an older one takes their place."""

from __future__ import annotations

import json
import random
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from killer import Killed, Killer
from small_run import PROJECTED, make_distiller, make_student, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdplug.engine.checkpoint.checkpoint import begin, latest
from kdplug.engine.checkpoint.weights import load_student
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import RunError


@contextmanager
def warned(caplog, pattern):
    """One warning is logged, and it matches."""
    caplog.clear()
    yield
    (message,) = caplog.messages
    assert re.search(pattern, message)


FILES = ["student.safetensors", "objective.safetensors", "run.json", "run.safetensors", "process-0.json", "process-0.safetensors"]  # fmt: skip


def go(folder, *, killed_at=None, resume="auto", **train):
    """Train 6 steps with a checkpoint after each, or until the kill; the final weights."""
    torch.manual_seed(0)
    student = make_student(dropout=0.2)
    options = {"observers": [] if killed_at is None else [Killer(killed_at)]}
    training = {"ckpt_steps": 1, "seed": 7, "keep_last": None}
    distiller = make_distiller(folder, student, matches=[PROJECTED], training=training, options=options)
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loader = DataLoader(TensorDataset(data), batch_size=4, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    distiller.train(optimizer, loader, num_steps=6, resume=resume, **train)
    return torch.cat([weights(student), weights(distiller.objective)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run with the checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Killed):
        go(folder, killed_at=4)
    return folder


@pytest.fixture
def run(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "run")


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)


def edit(file):
    """Another number, in valid JSON of the same length."""
    text = file.read_text()
    place = next(place for place, letter in enumerate(text) if letter in "12345678")
    file.write_text(text[:place] + str(int(text[place]) + 1) + text[place + 1 :])


DAMAGES = {
    "a flipped bit": lambda file: flip(file, -1),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "zeroes": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "from another step": lambda file: shutil.copy(file.parents[1] / "step-1" / file.name, file),
}


@pytest.mark.attack("damaged file of the newest checkpoint")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_undamaged_checkpoint_is_used_and_the_damage_is_named(run, name, damage, caplog):
    DAMAGES[damage](run / "step-3" / name)
    with warned(caplog, rf"step-3 \({name}.*Resuming from .*step-2$"):
        assert latest(run) == run / "step-2"


@pytest.mark.attack("damaged file of the newest checkpoint")
@pytest.mark.parametrize("name", FILES)
def test_a_run_from_the_checkpoint_before_the_damaged_one_ends_in_the_same_bits(run, whole, name, caplog):
    flip(run / "step-3" / name, -1)
    with warned(caplog, rf"step-3 \({name}"):
        assert torch.equal(go(run), whole)
    assert latest(run) == run / "step-6"


@pytest.mark.attack("flipped bit anywhere in a checkpoint")
def test_a_flipped_bit_anywhere_is_found(run, attempts, caplog):
    draw = random.Random(5)
    files = [*((run / "step-3" / name) for name in (*FILES, "checksums.json"))]
    for _ in range(300):
        file = draw.choice(files)
        before = file.read_bytes()
        if not before:
            continue
        flip(file, draw.randrange(len(before)), draw.randrange(8))
        caplog.clear()
        found = latest(run)
        harmless = file.name == "checksums.json" and same_json(file.read_bytes(), before)
        attempts.record(harmless or (found == run / "step-2" and len(caplog.messages) == 1))
        file.write_bytes(before)
    assert attempts.held == attempts.tried > 200
    assert latest(run) == run / "step-3"


def same_json(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.attack("edited JSON of a checkpoint")
@pytest.mark.parametrize("name", ["run.json", "process-0.json", "checksums.json"])
def test_edited_json_is_found(run, name, caplog):
    edit(run / "step-3" / name)
    with warned(caplog, "step-3"):
        assert latest(run) == run / "step-2"


@pytest.mark.attack("edited JSON of a checkpoint")
@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"student.safetensors": 1}', '{"run.json": {"bytes": "x", "crc32": 0}}']
)
def test_checksums_that_lack_a_file_vouch_for_nothing(run, content, caplog):
    (run / "step-3" / "checksums.json").write_text(content)
    with warned(caplog, r"checksums\.json"):
        assert latest(run) == run / "step-2"


@pytest.mark.attack("swapped checkpoints")
def test_folders_that_changed_places_are_found(run, caplog):
    (run / "step-3").rename(run / "other")
    (run / "step-2").rename(run / "step-3")
    (run / "other").rename(run / "step-2")
    with warned(caplog, r"step-3 \(it was written after step 2\).*step-2 \(it was written after step 3\)"):
        assert latest(run) == run / "step-1"


@pytest.mark.attack("swapped checkpoints")
def test_students_that_changed_places_are_found(run, caplog):
    files = [run / step / "student.safetensors" for step in ("step-2", "step-3")]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with warned(caplog, r"step-3 \(student\.safetensors does not match its checksum.*step-2 \(student"):
        assert latest(run) == run / "step-1"


@pytest.mark.attack("all checkpoints damaged")
def test_damage_everywhere_is_an_error_that_names_each(run):
    for step in (1, 2, 3):
        flip(run / f"step-{step}" / "student.safetensors", -1)
    with pytest.raises(
        RunError, match=r"(?s)every checkpoint to resume from is damaged.*step-3 .*step-2 .*step-1 \(student"
    ):
        go(run)


@pytest.mark.attack("damaged checkpoint named by the user")
def test_a_damaged_checkpoint_that_is_named_is_an_error_that_names_an_undamaged_one(run):
    flip(run / "step-3" / "run.safetensors", -1)
    with pytest.raises(
        RunError, match=r"step-3 is damaged: run\.safetensors does not match its checksum. Resume from step-2"
    ):
        go(run, resume=run / "step-3")
    go(run, resume=run / "step-2")


@pytest.mark.attack("damaged checkpoint named by the user")
def test_a_damaged_student_is_not_loaded(run):
    load_student(make_student(), run / "step-3")
    flip(run / "step-3" / "student.safetensors", -1)
    for path in (run / "step-3", run / "step-3" / "student.safetensors"):
        with pytest.raises(RunError, match=r"step-3 is damaged: student\.safetensors does not match its checksum"):
            load_student(make_student(), path)


@pytest.mark.attack("damaged or lost mark of a run")
@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "empty", "zeroes"])
def test_a_damaged_mark_does_not_start_the_run_again(run, damage):
    DAMAGES[damage](run / ".run")
    with pytest.raises(RunError, match=r"\.run, which identifies the run .*, is damaged\. Pass the checkpoint"):
        go(run)


@pytest.mark.attack("damaged or lost mark of a run")
def test_a_lost_mark_does_not_start_the_run_again(run, whole):
    (run / ".run").unlink()
    with pytest.raises(
        RunError, match=r"holds step-3, but not the file \.run.* Pass the checkpoint to resume from \(resume=.*step-3"
    ):
        go(run)
    assert torch.equal(go(run, resume=run / "step-3"), whole)


@pytest.mark.attack("damaged best checkpoint")
def test_a_damaged_best_checkpoint_is_no_best_any_more(tmp_path, caplog):
    numbers = iter([3.0, 9.0, 1.0, 2.0, 4.0, 3.0, 2.0])

    def looks():
        return Evaluation(function=lambda model: {"accuracy": next(numbers)}, best="accuracy", every=1)

    with pytest.raises(Killed):
        go(tmp_path, killed_at=4, evaluation=looks())
    flip(tmp_path / "step-2" / "student.safetensors", -1)
    student = make_student(dropout=0.2)
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED], training={"ckpt_steps": 1, "seed": 7})
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loader = DataLoader(TensorDataset(data), batch_size=4, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    with warned(caplog, r"the best checkpoint so far, step-2, is damaged \(student\.safetensors"):
        result = distiller.train(optimizer, loader, num_steps=6, resume="auto", evaluation=looks())
    assert result.best == tmp_path / "step-5"


@pytest.mark.attack("damaged file of the newest checkpoint")
def test_checkpoints_of_an_earlier_run_are_no_damage(run, caplog):
    """They are of another run, whether they are whole or not."""
    flip(run / "step-3" / "student.safetensors", -1)
    begin(run, is_main=True)
    assert latest(run) is None
    assert not caplog.messages


@pytest.mark.attack("damaged file of the newest checkpoint")
def test_weights_of_a_file_that_is_no_safetensors_are_an_error_of_ours(tmp_path):
    (tmp_path / "student.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(RunError, match="cannot read"):
        load_student(nn.Linear(2, 2), tmp_path)
