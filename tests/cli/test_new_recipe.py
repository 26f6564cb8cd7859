"""``kdplug new``: a recipe that is right as it is written."""

from __future__ import annotations

import json
import re

import pytest
from jsonschema import Draft7Validator

from kdplug import __version__
from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe, RecipeTraining
from kdplug.config.text import read_document

TASK = '''
    from typing import Annotated, Literal
    from pydantic import Field

    class Toy:
        """A task.

        Settings: ``size``, how much of it; ``word``, text that needs quotes.
        """

        def __init__(
            self,
            *,
            size: Annotated[int, Field(ge=1, le=9)] = 3,
            word: str = "null: # ",
            share: Annotated[float, Field(gt=0)] = 1e-5,
            path: str,
        ): ...
'''


@pytest.fixture
def site(fake_site):
    fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": TASK})
    fake_site.add("kdplug-presets", __version__, losses={"ce": "no_such_module:ce"})
    return fake_site


@pytest.fixture
def digits(kdplug, tmp_path):
    assert kdplug("new", tmp_path / "digits.yaml", "--task", "digits").exit_code == 0
    return tmp_path / "digits.yaml"


def test_it_is_right_for_kdplug_and_for_the_schema_next_to_it(digits):
    schema = json.loads(digits.with_name("kdplug.schema.json").read_text())
    assert digits.read_text().startswith("# yaml-language-server: $schema=./kdplug.schema.json\n")
    assert list(Draft7Validator(schema).iter_errors(read_document(digits).data)) == []
    assert Recipe.from_file(digits).distillation.resolved()


def test_every_key_is_below_a_comment(digits):
    lines = digits.read_text().splitlines()
    keys = [place for place, line in enumerate(lines) if re.match(r" *[a-z_]+:", line) and "  name:" not in line]
    named = {lines[place].split(":")[0].strip() for place in keys}
    assert named >= {*Recipe.model_fields, *DistillationConfig.model_fields, *RecipeTraining.model_fields}
    assert [lines[place] for place in keys if not lines[place - 1].lstrip().startswith("# ")] == []


def test_each_comment_is_the_description_of_the_field(digits):
    lines = [line.strip() for line in digits.read_text().splitlines()]
    for model in (Recipe, DistillationConfig, RecipeTraining):
        for key, field in model.model_fields.items():
            assert any(line.startswith(f"# {field.description.replace('`', '')}") for line in lines), key


def test_it_keeps_the_defaults_but_for_six(digits):
    found = Recipe.from_file(digits)
    least = Recipe.from_dict(
        {
            "task": found.to_dict()["task"],
            "distillation": {"kd_loss_type": {"name": "ce", "t2": True}, "hard_label_weight": 1},
            "training": {"lr": 1e-2, "num_epochs": 60, "lr_schedule": "linear"},
            "seeds": 3,
        }
    )
    assert found == least


@pytest.mark.slow
def test_it_runs_as_it_is_written(kdplug, digits, tmp_path):
    done = kdplug("run", digits, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0
    assert (tmp_path / "out" / "metrics.json").exists()


def test_it_runs_in_few_steps(kdplug, digits, tmp_path):
    short = ["training.num_epochs=null", "training.num_steps=1", "task.teacher_epochs=1", "training.ckpt_frequency=0"]
    changes = [word for change in short for word in ("--set", change)]
    assert kdplug("run", digits, "--output-dir", tmp_path / "out", *changes).exit_code == 0


@pytest.mark.parametrize("file", ["digit", "digits.yaml"])
def test_without_a_task_the_nearest_and_all_others_are_named(kdplug, tmp_path, file):
    refused = kdplug("new", tmp_path / file)
    said = " ".join(refused.stderr.split())
    near = f"Did you mean kdplug new {(tmp_path / file).with_suffix('.yaml')} --task digits? Tasks: "
    assert (refused.exit_code, near in said) == (2, True)
    assert "causal-lm, digits, image-classification, " in said


def test_a_file_that_exists_is_left_alone_without_force(kdplug, digits):
    digits.write_text("mine")
    refused = kdplug("new", digits, "--task", "digits")
    assert (refused.exit_code, digits.read_text()) == (2, "mine")
    assert "already exists. Overwrite it with --force" in refused.stderr
    assert kdplug("new", digits, "--task", "digits", "--force").exit_code == 0
    assert Recipe.from_file(digits).task.name == "digits"


@pytest.mark.parametrize(
    ("file", "task", "message"),
    [
        ("a.json", "digits", "the name of a new recipe must end in .yaml or .yml"),
        ("a.yaml", "digit", "--task: no task named 'digit'. Did you mean 'digits'"),
    ],
)
def test_what_cannot_be_written_is_one_message_and_no_file(kdplug, tmp_path, file, task, message):
    done = kdplug("new", tmp_path / file, "--task", task)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_kd_loss_says_how_to_get_it_and_writes_nothing(kdplug, fake_site, tmp_path):
    fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": TASK})
    with fake_site.host():
        done = kdplug("new", tmp_path / "a.yaml", "--task", "toy")
    assert "'ce' is not installed. It is part of kdplug-presets: pip install kdplug-presets" in done.stderr
    assert not (tmp_path / "a.yaml").exists()


def test_settings_come_with_docs_bounds_and_defaults_and_the_missing_ones_are_reported(kdplug, site, tmp_path):
    with site.host():
        done = kdplug("new", tmp_path / "a.yaml", "--task", "kdplug-toy:toy")
        assert Recipe.from_file(tmp_path / "a.yaml").task.settings == {
            "size": 3,
            "word": "null: # ",
            "share": 1e-5,
            "path": None,
        }
    text = (tmp_path / "a.yaml").read_text()
    assert "  # how much of it (>= 1, <= 9)\n  size: 3\n" in text
    assert "\noutput_dir: runs/toy\n" in text
    assert "Fill in task.path\n" in done.stdout


def test_no_plugin_is_imported_but_the_task(fake_site, tmp_path):
    fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": TASK})
    code = f"""
        import sys
        from kdplug.cli.app import app
        app(["new", {str(tmp_path / "a.yaml")!r}, "--task", "toy"], standalone_mode=False)
        assert "kdplug_toy" in sys.modules
        assert not {{"torch", "kdplug_presets", "kdplug_tasks"}} & set(sys.modules)
    """
    assert "Run it:" in fake_site.prints(code)


def test_a_task_that_cannot_be_imported_is_an_error(kdplug, fake_site, tmp_path):
    fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": "import apex"})
    with fake_site.host():
        done = kdplug("new", tmp_path / "a.yaml", "--task", "toy")
    assert done.exit_code == 2
    assert "'kdplug-toy:toy' is installed but failed to load" in done.stderr


@pytest.fixture
def suggesting(fake_site, kdplug, tmp_path):
    """``kdplug new`` for a task that says ``words`` above its class, and the recipe where one was written."""
    fake_site.add("kdplug-presets", losses={"ce": "no_such_module:ce"})

    def run(words):
        source = f"import kdplug\n@kdplug.new_recipe({words})\nclass Toy: ...\n"
        fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": source})
        with fake_site.host():
            done = kdplug("new", tmp_path / "toy.yaml", "--task", "toy")
            return done, Recipe.from_file(tmp_path / "toy.yaml") if done.exit_code == 0 else None

    return run


def test_a_task_says_what_its_new_recipe_starts_from(suggesting):
    _, recipe = suggesting('distillation={"temperature": 2}, training={"lr": 2e-4, "num_epochs": 3}')
    assert (recipe.training.lr, recipe.training.num_epochs, recipe.distillation.temperature) == (2e-4, 3, 2)
    assert (recipe.training.lr_schedule, recipe.distillation.hard_label_weight) == ("linear", 1)


def test_what_a_recipe_leaves_out_has_the_default_whatever_its_task_says():
    recipe = Recipe.from_yaml("{task: text-classification, distillation: {}, training: {num_epochs: 1}}")
    assert recipe.training.lr == 1e-3
    assert recipe.training.warmup == 0


def test_a_key_that_there_is_not_is_reported_with_the_task_that_names_it(suggesting, tmp_path):
    done, _ = suggesting('training={"epochs": 3}')
    assert done.exit_code == 2
    assert "kdplug-toy:toy sets training.epochs in new recipes" in " ".join(done.stderr.split())
    assert not (tmp_path / "toy.yaml").exists()


def test_a_setting_without_a_default_shows_the_example_of_its_task(kdplug, fake_site, tmp_path):
    fake_site.add("kdplug-presets", losses={"ce": "no_such_module:ce"})
    source = "import kdplug\n@kdplug.new_recipe(task={'path': 'train.csv'})\nclass Toy:\n    def __init__(self, *, path: str): ...\n"
    fake_site.add("kdplug-toy", tasks={"toy": "kdplug_toy:Toy"}, files={"kdplug_toy.py": source})
    with fake_site.host():
        done = kdplug("new", tmp_path / "a.yaml", "--task", "toy")
    assert "\n  path: train.csv  # fill in\n" in (tmp_path / "a.yaml").read_text()
    assert "Fill in task.path\n" in done.stdout


def test_data_that_several_tasks_read_need_a_name(kdplug, fake_site, tmp_path):
    fake_site.add("kdplug-presets", losses={"ce": "no_such_module:ce"})
    source = """
        import kdplug

        def guess(data, teacher):
            return kdplug.RecipeGuess({"path": str(data)}, ["its name"])

        @kdplug.new_recipe(guess=guess)
        class One:
            def __init__(self, *, path: str): ...

        @kdplug.new_recipe(guess=guess)
        class Two:
            def __init__(self, *, path: str): ...
        """
    names = {"one": "kdplug_toy:One", "two": "kdplug_toy:Two", "gone": "kdplug_toy:Gone"}
    fake_site.add("kdplug-toy", tasks=names, files={"kdplug_toy.py": source})
    with fake_site.host():
        several = kdplug("new", tmp_path / "a.yaml", "--from", tmp_path)
        one = kdplug("new", tmp_path / "a.yaml", "--from", tmp_path, "--task", "one")
    assert "matches several tasks: one, two. Choose one with --task" in " ".join(several.stderr.split())
    assert "skipping kdplug-toy:gone" in several.stderr
    assert "its name" in one.stdout
    assert "Fill in" not in one.stdout
