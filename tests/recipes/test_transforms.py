"""Student transforms of a recipe: every figure is that of the finished student, and checkpoints hold the prepared one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from killer import Killed, Killer
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

import kdplug
from kdplug import Recipe
from kdplug.errors import ConfigError, KdplugError, RunError
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe
from kdplug.recipes.task import build_task

CALLS: list[str] = []


class Adapter(nn.Module):
    """A frozen linear layer and a low-rank difference."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Low:
    """Train a low-rank difference instead of the weights."""

    def __init__(self, *, rank: int = 1) -> None:
        self.rank = rank

    def prepare(self, student):
        CALLS.append("prepare low")
        return Adapter(student, self.rank)

    def finish(self, student):
        CALLS.append("finish low")
        merged = nn.Linear(student.base.in_features, student.base.out_features)
        merged.weight.data = student.base.weight + student.up @ student.down
        merged.bias.data = student.base.bias.clone()
        return merged


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


class Twice:
    """Double the logits while training; the finished student has them as they are, and so other figures."""

    def prepare(self, student):
        CALLS.append("prepare twice")
        return Scaled(student)

    def finish(self, student):
        CALLS.append("finish twice")
        return student.inner


class Zero:
    """Finish a student that always says the first class."""

    finish_is_costly = True

    def prepare(self, student):
        return student

    def finish(self, student):
        with torch.no_grad():
            student.weight.zero_()
            student.bias.copy_(torch.tensor([1.0, 0.0]))
        return student


@pytest.fixture
def transformed(signs):
    CALLS.clear()
    for name, transform in {"low": Low, "twice": Twice, "zero": Zero}.items():
        kdplug.student_transforms.register(name)(transform)

    def make(*transforms, **keys):
        data = {**signs().to_dict(), "student": {"transforms": list(transforms)}, **keys}
        return Recipe.from_dict(data)

    return make


def metrics(recipe):
    return json.loads((Path(recipe.output_dir) / "metrics.json").read_text())


def runner_of(recipe, **more):
    return RecipeRunner(recipe, build_task(recipe)[1], print, show_progress=False, **more)


def test_the_saved_student_is_the_finished_one_and_checkpoints_hold_the_prepared_one(transformed):
    recipe = transformed({"name": "low", "rank": 2}, training={"num_epochs": 2, "batch_size": 16, "device": "cpu"})
    run_recipe(recipe)
    folder = Path(recipe.output_dir)
    assert set(load_file(folder / "student.safetensors")) == {"weight", "bias"}
    last = max((folder / "seed-0/distilled").glob("step-*"))
    assert set(load_file(last / "student_trainable.safetensors")) == {"down", "up"}


def test_every_figure_is_that_of_the_saved_student(transformed):
    recipe = transformed("low", "twice")
    run_recipe(recipe)
    saved = nn.Linear(4, 2)
    saved.load_state_dict(load_file(Path(recipe.output_dir) / "student.safetensors"))
    runner, found = runner_of(recipe), metrics(recipe)["arms"]["distilled"]
    assert found["parameters"] == 10
    assert found["runs"][0]["metrics"] == runner.predict(saved).metrics
    assert found["runs"][0]["validation"] == runner.validated(saved)
    rows = [json.loads(line) for line in (Path(recipe.output_dir) / "predictions.jsonl").read_text().splitlines()]
    own = [row["probability"] for row in rows if row["arm"] == "distilled"]
    assert own == [row["probability"] for row in runner.predict(saved).rows]


def test_the_control_has_the_same_transforms_and_the_same_start(transformed):
    recipe = transformed("low", "twice")
    run_recipe(recipe)
    arms = metrics(recipe)["arms"]
    assert arms["no_teacher"]["parameters"] == arms["distilled"]["parameters"] == 10
    one, two = (runner_of(recipe).student(None) for _ in range(2))
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_transforms_prepare_in_order_and_finish_in_reverse_order(transformed):
    runner = runner_of(transformed("low", "twice"))
    student = runner.student(None)
    runner.transforms.finish(student)
    assert CALLS == ["prepare low", "prepare twice", "finish twice", "finish low"]


def test_a_costly_finish_is_measured_once_at_the_end(transformed):
    recipe = transformed("zero")
    run_recipe(recipe)
    run = metrics(recipe)["arms"]["distilled"]["runs"][0]
    lines = (Path(recipe.output_dir) / "seed-0/distilled/history.jsonl").read_text().splitlines()
    history = list(map(json.loads, lines))
    during = [line["validation"]["accuracy"] for line in history if "validation" in line]
    constant = nn.Linear(4, 2)
    Zero().finish(constant)
    runner = runner_of(recipe)
    assert run["validation"] == runner.validated(constant)
    assert run["metrics"] == runner.predict(constant).metrics
    assert run["validation"]["accuracy"] not in during


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_killed_run_resumes_to_equal_bits(transformed, step, tmp_path):
    training = {"num_steps": 6, "batch_size": 16, "device": "cpu", "ckpt_steps": 1, "optimizer": "AdamW"}
    whole = transformed("low", "twice", training=training)
    run_recipe(whole)
    killed = transformed("low", "twice", training=training, output_dir=str(tmp_path / "killed"))
    with pytest.raises(Killed):
        runner_of(killed, observers=(Killer(step + 1),)).distilled(runner_of(killed).teacher())
    runner_of(killed, resume=True).distilled(runner_of(killed).teacher())
    last = "seed-0/distilled/step-6"
    one, two = (load_file(Path(one.output_dir) / last / "student_trainable.safetensors") for one in (whole, killed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_does_not_resume_with_another_setting(transformed):
    run_recipe(transformed({"name": "low", "rank": 2}))
    with pytest.raises(RunError, match="student"):
        run_recipe(transformed({"name": "low", "rank": 1}), resume=True)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("lwo", "student.transforms.0: no student transform named 'lwo'. Did you mean 'low'"),
        ({"name": "low", "rnak": 1}, "student.transforms.0: local:low has no setting 'rnak'. Did you mean 'rank'?"),
        ("half", "student.transforms.0: local:half is not a student transform: it lacks finish"),
        ("nothing", "student.transforms.0: prepare of local:nothing must return the student, a module, got NoneType"),
        ("broken", "student.transforms.0: finish of local:broken failed: ValueError: oh"),
        ("frozen", "student.transforms: leave no parameter of the student to train"),
    ],
)
def test_a_wrong_transform_is_an_error_before_anything_is_trained(transformed, transform, message):
    same = staticmethod(lambda student: student)

    def fails(student):
        raise ValueError("oh")

    kinds = {
        "half": {"prepare": same},
        "nothing": {"prepare": staticmethod(lambda student: None), "finish": same},
        "broken": {"prepare": same, "finish": staticmethod(fails)},
        "frozen": {"prepare": staticmethod(lambda student: student.requires_grad_(False)), "finish": same},
    }
    for name, methods in kinds.items():
        kdplug.student_transforms.register(name)(type(name, (), methods))
    with pytest.raises(KdplugError) as caught:
        run_recipe(transformed(transform))
    assert str(caught.value).startswith(message)


def test_the_list_is_a_list_without_repetitions(transformed):
    with pytest.raises(ConfigError, match=r"^student.transforms.1: is the same as number 0"):
        transformed("low", "low")
    with pytest.raises(ConfigError, match=r"^student.transforms: must be a list of components"):
        Recipe.from_dict({**transformed().to_dict(), "student": {"transforms": "low"}})


def test_the_same_transforms_in_python(transformed):
    transformed()
    transforms = kdplug.StudentTransforms([["low", 2], {"name": "twice"}])
    torch.manual_seed(0)
    base = nn.Linear(4, 2)
    prepared = transforms.prepare(base)
    x = torch.randn(3, 4)
    copied = transforms.finished_copy(prepared)
    torch.testing.assert_close(copied(x) * 2, prepared(x))
    assert sum(p.requires_grad for p in prepared.parameters()) == 2
    finished = transforms.finish(prepared)
    torch.testing.assert_close(finished(x), copied(x))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_a_finished_copy_of_a_parametrized_student_leaves_the_student_as_it_is(signs):
    """Torch deletes the parameter from the class of a parametrized module, which a deep copy shares."""

    class Halves:
        def prepare(self, student):
            parametrize.register_parametrization(student, "weight", Halved())
            return student

        def finish(self, student):
            with torch.no_grad():
                return parametrize.remove_parametrizations(student, "weight", leave_parametrized=True)

    kdplug.student_transforms.register("halves")(Halves)
    transforms = kdplug.StudentTransforms(["halves"])
    student = transforms.prepare(nn.Linear(4, 2))
    copied = transforms.finished_copy(student)
    assert torch.equal(copied.weight, student.weight)
    assert type(copied) is nn.Linear
    assert parametrize.is_parametrized(student)
