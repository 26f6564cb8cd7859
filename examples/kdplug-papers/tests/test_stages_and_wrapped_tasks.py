"""Recipes of methods with stages or a wrapped task: each runs, does what the paper says, and resumes to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import kdplug_papers
import pytest
import torch
from safetensors.torch import load_file

import kdplug
from kdplug.testing import TaskLaws

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
BASE = {"name": "digits", "labels_per_class": 3, "teacher_epochs": 1}


class TestSimKD(TaskLaws):
    entry = "kdplug-papers:simkd"
    settings: ClassVar = {"base": BASE}


class TestMixup(TaskLaws):
    entry = "kdplug-papers:mixup"
    settings: ClassVar = {"base": BASE}


def small(file: Path, folder: Path) -> kdplug.Recipe:
    """Return a recipe with one short epoch, or less, in each stage."""
    recipe = kdplug.Recipe.from_file(file)
    data = recipe.to_dict()
    task = data["task"] if "base" not in data["task"] else data["task"]["base"]
    task |= BASE
    for training in (data["training"], *(stage["training"] for stage in data["stages"])):
        if training is data["training"] or "num_epochs" in training:
            training |= {"num_epochs": None, "num_steps": 12}
    for stage in data["stages"]:
        stage["training"].pop("num_epochs", None)
    data["training"] |= {"device": "cpu", "evaluations": 2, "ckpt_steps": 5}
    return kdplug.Recipe.from_dict({**data, "seeds": None, "controls": [], "output_dir": str(folder)})


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """Return the weights that a stage passes on, without frozen ones."""
    place = folder / "seed-0" / "distilled" / f"stage-{stage}"
    result = json.loads((place / "stage.json").read_text())["result"]
    (file,) = (place / f"step-{result['best_step'] or result['steps']}").glob("student*.safetensors")
    return load_file(file)


class Dead(BaseException):
    """Ends a run as a kill does."""


@pytest.mark.filterwarnings("ignore:.*got no gradient in the first")  # a stage that trains features alone
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_killed_recipe_resumes_to_the_same_bits(file, tmp_path, monkeypatch):
    from kdplug.engine.loop import Loop

    whole = kdplug.run_recipe(small(file, tmp_path / "whole"))
    usual, steps = Loop._step, []

    def mortal(self, window):
        usual(self, window)
        steps.append(self.run.step)
        if len(steps) == 16 + whole.steps - 5:  # a teacher of 16 steps, then all but the last five
            raise Dead

    monkeypatch.setattr(Loop, "_step", mortal)
    with pytest.raises(Dead):
        kdplug.run_recipe(small(file, tmp_path / "killed"))
    kdplug.run_recipe(small(file, tmp_path / "killed"), resume=True)
    mine, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("killed", "whole"))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.filterwarnings("ignore:.*got no gradient in the first")
def test_simkd_classifies_with_the_weights_of_the_trained_teacher(tmp_path):
    (file,) = [file for file in RECIPES if file.stem == "simkd"]
    folder = kdplug.run_recipe(small(file, tmp_path)).output_dir
    student = load_file(folder / "student.safetensors")
    teacher = load_file(max((folder / "teacher").glob("step-*")) / "student.safetensors")
    for name in ("weight", "bias"):
        assert torch.equal(student[f"classifier.{name}"], teacher[f"head.{name}"])


def test_simkd_of_the_teachers_own_features_gives_the_teachers_logits():
    task = kdplug.tasks.build({"name": "simkd", "base": BASE}).target
    teacher, student = task.build_teacher().eval(), task.build_student().eval()
    task.start_student(student, teacher)
    batch = task.collate([task.data("test")[place] for place in range(4)])
    outputs = teacher(**batch)
    torch.testing.assert_close(student.classifier(outputs["hidden"][-1].mean(dim=1)), outputs["logits"])


def test_mixup_gives_mixtures_of_two_images_without_a_label():
    task = kdplug.tasks.build({"name": "mixup", "base": BASE}).target
    torch.manual_seed(0)
    batch = task.collate([task.data("baseline")[place] for place in range(4)])
    mixed = task.prepare_batch(batch, task.build_student())
    assert (mixed["labels"] == -100).all()
    images = batch["images"].flatten(1).double()
    for row in mixed["images"].flatten(1).double():
        errors = []
        for one in images:
            for other in images:
                apart = one - other
                share = ((row - other) @ apart / (apart @ apart)) if apart.any() else torch.tensor(1.0)
                errors.append(float((row - share * one - (1 - share) * other).abs().max()))
        assert min(errors) < 1e-5
    assert not torch.equal(mixed["images"], batch["images"])


@pytest.mark.filterwarnings("ignore:.*got no gradient in the first")
def test_progressive_transfer_leaves_the_blocks_below_unchanged(tmp_path):
    (file,) = [file for file in RECIPES if file.stem == "mobilebert"]
    folder = kdplug.run_recipe(small(file, tmp_path)).output_dir
    first, second = weights(folder, "block-0"), weights(folder, "block-1")
    assert "blocks.0.1.weight" in first
    assert "blocks.0.1.weight" not in second  # frozen: the checkpoint holds only a digest of it
    assert not torch.equal(first["blocks.1.1.weight"], second["blocks.1.1.weight"])
    assert "blocks.0.1.weight" in weights(folder, "logits")


def test_every_recipe_can_be_read_and_is_listed_in_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert kdplug_papers.__doc__
    for file in RECIPES:
        kdplug.Recipe.from_file(file)
        assert f"recipes/{file.name}" in readme
