"""A model card is Markdown, whatever the paths and labels in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

import kdplug
from kdplug_tasks.models.card import model_card


def card(teacher, *, metric="accuracy", settings=None):
    family = SimpleNamespace(
        teacher=SimpleNamespace(path=teacher, train=False),
        teacher_config=SimpleNamespace(model_type="bert"),
        student_config=SimpleNamespace(model_type="bert"),
    )
    arm = {"metrics": {metric: 0.5}, "parameters": 10}
    results = {
        "arms": {"teacher": arm, "no_teacher": arm, "distilled": arm},
        "metric": metric,
        "is_lower_better": False,
        "optimizer_steps": 3,
        "seeds": [0],
        "saved_seed": 0,
        "verdict": None,
    }
    recipe = kdplug.Recipe.from_dict(
        {"task": {"name": "digits", **(settings or {})}, "distillation": {}, "training": {"num_epochs": 1}}
    )
    record = {
        "kdplug": "0.1.0",
        "torch": "2.13",
        "entries": [],
        "plugins": [],
        "recipe": recipe.to_dict(),
        "results": results,
    }
    return model_card(record, family, SimpleNamespace(auto="AutoModel"))


PATHS = ["name\nlicense: mit", "x: [y", "a#b", "'", "name\n---\n# Other", "a` <b>bold</b> `c", "``", "true", "é😀"]


@pytest.mark.parametrize("path", PATHS)
def test_the_front_matter_holds_the_teachers_name_and_nothing_else_of_it(path):
    front, _, rest = card(path).removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["kdplug", "knowledge-distillation"],
        "base_model": path,
    }
    assert rest.startswith("\n# Distilled bert model\n")
    assert "\n# Other" not in rest


def test_a_backtick_in_a_path_stays_in_its_code():
    assert "from `` a` <b>bold</b> `c ``." in card("a` <b>bold</b> `c")


def test_a_fence_in_the_recipe_does_not_end_its_block():
    text = card("bert", settings={"note": "```\n# Other"})
    assert text.count("\n````yaml\n") == 1
    assert text.endswith("````\n")


def test_a_metric_name_stays_in_its_cell():
    assert "| model | a\\|b c | parameters |" in card("bert", metric="a|b\nc")


def test_the_recipe_has_one_key_on_each_line():
    lines = card("bert", settings={"note": {"a": [1, 2]}}).splitlines()
    assert "{" not in "".join(lines[lines.index("## Recipe") :])
    assert "  num_epochs: 1" in lines
