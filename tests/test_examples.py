"""Every recipe and every script in ``examples/`` runs: in few steps, and at full length in the slow tests."""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from pathlib import Path

import pytest

from kdplug import Recipe
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.run import run_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = {"own_loop": "3", "multi_teacher": "3", "multi_task": "3", "trainer": "0.05"}
RECIPES = ("text_classification", "token_classification", "question_answering", "image_classification")
SHORT = ["training.num_epochs=null", "training.num_steps=2", "task.teacher.epochs=1", "task.teacher.batch_size=256"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder that ``examples/data.py`` writes."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        importlib.import_module("data").write_all(folder)
    del sys.modules["data"]
    return folder


@pytest.fixture
def recipe(data, tmp_path):
    """A recipe by name, its files in the folder of the data and its results in one of the test's."""

    def read(name, *changes):
        found = Recipe.from_file(EXAMPLES / f"{name}.yaml")
        files = {part: found.task.settings["data"].get(part) for part in ("train", "distillation", "test")}
        moved = [
            f"task.data.{part}='{data / Path(file).name}'" for part, file in files.items() if isinstance(file, str)
        ]
        return found.with_overrides([*moved, f"output_dir='{tmp_path / 'run'}'", *changes])

    return read


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """Runs a script as ``python examples/NAME.py`` does, and returns what it printed."""

    def run(name, *words):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        sys.modules.pop("data", None)
        return capsys.readouterr().out

    return run


def figures_of(result):
    return [figures.metrics[result.metric] for figures in (result.teacher, result.distilled, result.no_teacher)]


def last_figure(shown, name):
    """The number after ``name`` where it was printed last."""
    return float(shown.rsplit(name, 1)[1].split()[0].strip(",:"))


def test_the_data_are_the_same_each_time(data, script, tmp_path):
    script("data", str(tmp_path / "again"))
    for file in data.iterdir():
        if file.suffix != ".npz":  # an archive holds the time of writing
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_in_few_steps(recipe, name):
    result = run_recipe(recipe(name, *SHORT))
    assert result.steps == 2
    assert all(0 <= figure <= 1 for figure in figures_of(result))


def test_a_language_model_is_distilled_from_a_cache(recipe, data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((data / "text.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    cached = recipe("causal_lm", *SHORT, f"task.data.train='{text}'", f"training.teacher_cache='{tmp_path / 'cache'}'")
    cache_recipe(cached, tmp_path / "cache")
    assert all(1 < figure < 2 * 512 for figure in figures_of(run_recipe(cached)))


@pytest.mark.parametrize(("name", "length"), SCRIPTS.items())
def test_a_script_runs_in_few_steps(script, name, length):
    assert "teacher" in script(name, length)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_at_full_length_a_student_is_worth_having(recipe, name):
    teacher, distilled, _ = figures_of(run_recipe(recipe(name)))
    assert teacher > 0.7
    assert distilled > 0.7


@pytest.mark.slow
def test_a_language_model_learns_more_with_its_teacher_than_alone(recipe, tmp_path):
    cached = recipe("causal_lm", f"training.teacher_cache='{tmp_path / 'cache'}'")
    cache_recipe(cached, tmp_path / "cache")
    teacher, distilled, baseline = figures_of(run_recipe(cached))
    assert teacher < distilled < baseline
    assert math.isfinite(baseline)


@pytest.mark.slow
def test_one_student_knows_more_than_each_of_its_teachers(script):
    shown = script("multi_teacher")
    assert last_figure(shown, "student of all three: ") > max(
        last_figure(shown, f"teacher {one}: ") for one in range(3)
    )


@pytest.mark.slow
def test_a_distilled_student_beats_one_that_is_alone_with_few_labels(script):
    shown = script("own_loop")
    assert last_figure(shown, "student, distilled: ") > last_figure(shown, "student, alone: ") + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_task", "trainer"])
def test_at_full_length_the_students_of_a_script_are_worth_having(script, name):
    assert last_figure(script(name), "student ") > 0.85
