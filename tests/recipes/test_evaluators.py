"""Evaluators of a recipe: figures of every model after the training, and one that fails costs nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import kdplug
from kdplug import Recipe
from kdplug.errors import KdplugError
from kdplug.recipes.run import EvaluatorError, run_recipe

CALLS: list[str] = []


class Norm:
    """The norm of the weights, and whether the model is as promised."""

    def __init__(self, *, power: float = 2.0) -> None:
        self.power = power

    def __call__(self, model, task):
        CALLS.append(type(task).__name__)
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"norm": torch.linalg.vector_norm(model.weight, self.power), "bias": float(model.bias[0])}


class Fails:
    """Fail as often as asked to."""

    left = 0

    def __call__(self, model, task):
        CALLS.append("fails")
        if type(self).left:
            type(self).left -= 1
            raise OSError("no network")
        return {"figure": 1.0}


class Spoils:
    """Change the model."""

    def __call__(self, model, task):
        with torch.no_grad():
            model.weight.zero_()
        return {"figure": 1.0}


@pytest.fixture
def evaluated(signs):
    CALLS.clear()
    Fails.left = 0
    for name, evaluator in {"norm": Norm, "fails": Fails, "spoils": Spoils}.items():
        kdplug.evaluators.register(name)(evaluator)
    kdplug.evaluators.register("odd")(type("Odd", (), {"__call__": lambda self, model, task: {"a": "b"}}))
    kdplug.evaluators.register("silent")(type("Silent", (), {"__doc__": "Cannot be called."}))
    return lambda *names, **keys: Recipe.from_dict({**signs().to_dict(), "evaluators": list(names), **keys})


def metrics(recipe):
    return json.loads((Path(recipe.output_dir) / "metrics.json").read_text())


def test_figures_of_each_arm_and_seed_are_in_the_metrics_the_table_and_the_report(evaluated):
    recipe, out = evaluated("norm", seeds=2), io.StringIO()
    run_recipe(recipe, console=Console(file=out, width=200))
    arms = metrics(recipe)["arms"]
    assert [len(arm["runs"]) for arm in arms.values()] == [1, 2, 2]
    assert all(run["evaluators"]["norm"].keys() == {"norm", "bias"} for arm in arms.values() for run in arm["runs"])
    assert arms["teacher"]["runs"][0]["evaluators"]["norm"]["norm"] == pytest.approx(8**0.5)
    one, two = (run["evaluators"]["norm"]["norm"] for run in arms["distilled"]["runs"])
    assert one != two
    row = next(line for line in out.getvalue().splitlines() if "norm: norm" in line)
    assert f"{(one + two) / 2:.4g}" in row
    page = (Path(recipe.output_dir) / "report.html").read_text()
    assert "norm: norm" in page


def test_an_evaluator_that_fails_loses_nothing_and_is_named_and_resume_runs_it_again(evaluated):
    recipe = evaluated("norm", "fails")
    Fails.left = 1
    with pytest.raises(EvaluatorError, match=r"fails: teacher: OSError: no network"):
        run_recipe(recipe)
    found = metrics(recipe)
    assert found["evaluators_failed"] == {"fails: teacher": "OSError: no network"}
    assert found["verdict"] is not None or found["arms"]["distilled"]["metrics"]
    assert found["arms"]["teacher"]["runs"][0]["evaluators"].keys() == {"norm"}
    assert found["arms"]["distilled"]["runs"][0]["evaluators"].keys() == {"norm", "fails"}
    assert "fails: teacher" in (Path(recipe.output_dir) / "report.html").read_text()
    assert (Path(recipe.output_dir) / "student.safetensors").is_file()
    CALLS.clear()
    run_recipe(recipe, resume=True)
    assert CALLS == ["fails"]
    assert "evaluators_failed" not in metrics(recipe)
    assert metrics(recipe)["arms"]["teacher"]["runs"][0]["evaluators"]["fails"] == {"figure": 1.0}


def test_an_evaluator_added_later_is_run_on_the_students_there(evaluated):
    run_recipe(evaluated())
    recipe = evaluated("norm")
    run_recipe(recipe, resume=True)
    assert len(CALLS) == 3
    assert metrics(recipe)["arms"]["distilled"]["runs"][0]["evaluators"].keys() == {"norm"}
    run_recipe(evaluated({"name": "norm", "power": 1.0}), resume=True)
    assert len(CALLS) == 6


def test_an_evaluator_that_changes_the_model_is_a_failure_and_others_see_the_model_as_it_was(evaluated):
    run_recipe(evaluated("norm"))
    before = metrics(evaluated("norm"))["arms"]["distilled"]["runs"][0]["evaluators"]["norm"]
    recipe = evaluated("spoils", {"name": "norm", "power": 2})
    with pytest.raises(EvaluatorError, match="it changed the weights of the model"):
        run_recipe(recipe, overwrite=True)
    assert metrics(recipe)["arms"]["distilled"]["runs"][0]["evaluators"]["norm"] == before


def test_what_is_no_number_is_a_failure(evaluated):
    with pytest.raises(EvaluatorError, match="must return a number for each name, got 'a': str"):
        run_recipe(evaluated("odd"))


def test_one_evaluator_with_two_settings_has_two_names(evaluated):
    recipe = evaluated({"name": "norm", "power": 1.0}, {"name": "norm", "power": 2.0})
    run_recipe(recipe)
    names = metrics(recipe)["arms"]["teacher"]["runs"][0]["evaluators"].keys()
    assert names == {"norm(power=1)", "norm(power=2)"}


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ("nrom", "evaluators.0: no evaluator named 'nrom'. Did you mean 'norm'"),
        ({"name": "norm", "powr": 1}, "evaluators.0: local:norm has no setting 'powr'. Did you mean 'power'?"),
        ("silent", "evaluators.0: local:silent is not an evaluator: it lacks __call__"),
    ],
)
def test_a_wrong_evaluator_is_an_error_before_anything_is_trained(evaluated, evaluator, message):
    with pytest.raises(KdplugError) as caught:
        run_recipe(evaluated(evaluator))
    assert str(caught.value).startswith(message)
