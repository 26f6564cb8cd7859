"""``kdplug run --resume`` over a file that somebody edited since: refused before anything is trained, and the part is named."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_scene import BERT, TRAINED, recipe, reviews, save_model, tokenizer, write_csv
from typer.testing import CliRunner

from kdplug.cli.app import app
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe

pytestmark = [
    pytest.mark.attack("kdplug run --resume over edited files"),
    pytest.mark.filterwarnings("ignore:hard_label_loss has counted no items"),  # the distillation data have no labels
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A recipe that was killed after its distillation, for a teacher in a folder and for one that it fits."""
    folder = tmp_path_factory.mktemp("begun")
    write_csv(folder / "train.csv", reviews(64))
    write_csv(folder / "test.csv", reviews(24, seed=1))
    write_csv(folder / "unlabelled.csv", [{"text": row["text"]} for row in reviews(40, seed=2)])
    brings = tokenizer([row["text"] for row in reviews(64)])
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    save_model(
        folder / "teacher", "AutoModelForSequenceClassification", BERT, brings=brings, vocab_size=len(brings), **names
    )
    small = {**BERT, "num_hidden_layers": 1}
    save_model(folder / "student", "AutoModel", small, brings=brings, vocab_size=len(brings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(RecipeRunner, "distilled", lambda *_, **__: 1 / 0)
        for kind in ("loaded", "fitted", "pretrained"):
            with pytest.raises(ZeroDivisionError):
                run_recipe(made(kind))
    return folder


def made(kind):
    data = {"train": "train.csv", "test": "test.csv", "distillation": "unlabelled.csv"}
    teacher = {"path": "teacher", **(TRAINED if kind == "fitted" else {})}
    student = {"path": "student"} if kind == "pretrained" else {"config": {"num_hidden_layers": 1}}
    task = {"name": "text-classification", "data": data, "teacher": teacher, "student": student, "max_length": 16}
    return recipe(task, kind)


@pytest.fixture
def folder(begun, tmp_path, monkeypatch):
    found = shutil.copytree(begun, tmp_path / "copy")
    monkeypatch.chdir(found)
    return found


def resume(kind, *more):
    Path("recipe.json").write_text(json.dumps(made(kind).to_dict()), encoding="utf-8")
    return CliRunner().invoke(app, ["run", "recipe.json", "--resume", *more])


def edit(name, row, column, value):
    rows = list(csv.DictReader(Path(name).read_text(encoding="utf-8").splitlines()))
    rows[row][column] = value(rows[row][column])
    write_csv(Path(name), rows)


def other_label(label):
    return {"pos": "neg", "neg": "pos"}[label]


EDITS = {
    "data.baseline.fingerprint.columns.label": ("train.csv", 33, "label", other_label),
    "data.baseline.fingerprint.columns.text": ("train.csv", 0, "text", str.upper),
    "data.test.fingerprint.columns.label": ("test.csv", 23, "label", other_label),
    "data.distillation.fingerprint.columns.text": ("unlabelled.csv", 39, "text", str.title),
}


@pytest.mark.parametrize("kind", ["loaded", "fitted"])
@pytest.mark.parametrize("field", EDITS)
def test_an_edited_cell_names_the_part_the_column_and_the_file(folder, kind, field):
    edit(*EDITS[field])
    result = resume(kind)
    text = " ".join(result.output.split())
    assert result.exit_code == 2
    assert re.search(r"changed since: data(, teacher)?\. ", text)
    assert f"{field} of {EDITS[field][0]}: changed" in text


@pytest.mark.parametrize("kind", ["loaded", "fitted"])
def test_unchanged_files_are_resumed(folder, kind):
    result = resume(kind)
    assert result.exit_code == 0, result.output
    assert (folder / kind / "metrics.json").is_file()


def test_another_number_of_workers_is_found(folder):
    result = resume("loaded", "--set", "training.num_workers=2")
    assert result.exit_code == 2
    assert "recipe.training.num_workers: 0 -> 2" in " ".join(result.output.split())


def test_what_a_fitted_teacher_learned_from_is_a_part_of_its_own(folder):
    edit("train.csv", 33, "label", other_label)
    assert "data.teacher.fingerprint.columns.label of train.csv: changed" in " ".join(resume("fitted").output.split())


@pytest.mark.parametrize("kind", ["loaded", "fitted"])
def test_another_teacher_in_the_folder_is_found(folder, kind):
    weights = folder / "teacher" / "model.safetensors"
    save_file({name: value * -5 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    result = resume(kind)
    text = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "changed since: teacher. " in text
    assert "teacher.files.model.safetensors: changed" in text


def test_another_student_to_start_from_is_found(folder):
    """The student without distillation would start from it, and the distilled one did not."""
    weights = folder / "student" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    result = resume("pretrained")
    assert result.exit_code == 2
    assert "changed since: student. " in " ".join(result.output.split())


def test_a_teacher_whose_middle_changed_is_found_when_it_is_loaded(folder, monkeypatch):
    """The record holds checksums of both ends of each file; the run's own fingerprint is of every weight."""
    monkeypatch.setattr("kdplug_tasks.fingerprint._ends", lambda file: [file.name])
    resume("loaded", "--resume-changed")
    shutil.rmtree(folder / "loaded" / "seed-0" / "no_teacher")
    (folder / "loaded" / "metrics.json").unlink()
    weights = folder / "teacher" / "model.safetensors"
    tensors = load_file(weights)
    next(value for value in tensors.values() if value.dim() == 2)[1, 1] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    result = resume("loaded")
    assert result.exit_code == 2
    assert "teacher.weights: changed" in " ".join(result.output.split())


def test_a_teacher_that_was_fitted_is_the_same_one_after_the_resume(folder):
    before = load_file(next((folder / "fitted" / "teacher").glob("step-*")) / "student.safetensors")
    assert resume("fitted").exit_code == 0
    after = load_file(next((folder / "fitted" / "teacher").glob("step-*")) / "student.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_damaged_teacher_that_was_fitted_is_an_error(folder):
    file = next((folder / "fitted" / "teacher").glob("step-*")) / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = resume("fitted")
    text = " ".join(result.output.split())
    assert result.exit_code != 0
    assert "every checkpoint to resume from is damaged" in text
    assert "student.safetensors does not match its checksum" in text
