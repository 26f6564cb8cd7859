from __future__ import annotations

import re

import pytest

from kdplug.config.recipe import Recipe
from kdplug.errors import ConfigError, KdplugError, UnknownKeyError


@pytest.fixture
def base(recipe, match):
    recipe["distillation"] = {"kd_loss_type": ["blend", 1, 8], "intermediate_matches": [match]}
    return Recipe.from_dict(recipe)


def _at(recipe, path):
    node = recipe.to_dict()
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.lr=1e-3", 1e-3),
        ("distillation.temperature=2", 2),
        ("distillation.intermediate_matches.0.weight=5", 5),
        ("distillation.intermediate_matches.0.proj=[linear, 3, 5]", ["linear", 3, 5]),
        ("distillation.kd_loss_type.1=2", 2),
        ("distillation.kd_loss_type={name: blend, alpha: 3}", {"name": "blend", "alpha": 3}),
        ("distillation.probability_shift=true", True),
        ("distillation.plugins.require=[pytest]", ["pytest"]),
        ("training.log_dir=", None),
        ("training.log_dir='a=b'", "a=b"),
        ("seed=3", 3),
    ],
)
def test_a_change_reaches_its_place_and_leaves_the_rest(base, override, value):
    before = base.to_dict()
    changed = base.with_overrides([override])
    assert _at(changed, override.partition("=")[0]) == value
    assert base.to_dict() == before


def test_a_setting_of_a_task_that_the_recipe_does_not_name_can_be_set(recipe):
    recipe["task"] = {"name": "digits", "data": {"train": "all.csv"}}
    changed = Recipe.from_dict(recipe).with_overrides(
        ["task.data.columns.text=sentence", "task.data.columns.label=gold"]
    )
    assert changed.to_dict()["task"]["data"]["columns"] == {"text": "sentence", "label": "gold"}


def test_no_change_changes_nothing(base):
    assert base.with_overrides([]) == base


def test_changes_are_made_in_their_order(base):
    changed = base.with_overrides(
        ["distillation.kd_loss_type={name: blend}", "distillation.kd_loss_type.alpha=3", "seed=1", "seed=2"]
    )
    assert changed.distillation.kd_loss_type.settings == {"alpha": 3}
    assert changed.seed == 2


def test_what_was_not_given_follows_the_change(base):
    changed = base.with_overrides(["distillation.hard_label_weight_scheduler=linear_decay"])
    assert changed.distillation.hard_label_weight == 1
    assert changed.with_overrides(["distillation.hard_label_weight_scheduler=none"]).distillation.hard_label_weight == 0


def test_the_length_can_be_given_in_the_other_unit(base):
    assert base.with_overrides(["training.num_epochs=null", "training.num_steps=9"]).training.num_steps == 9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.lrr=1", "training.lrr: unknown key. Did you mean 'lr'?"),
        (
            "trainig.lr=1",
            "trainig: unknown key. Did you mean 'training'? The keys here are: task, distillation, teacher, training, output_dir, seed, seeds, controls, vary, metric, margin, student, evaluators, stages, plugins",
        ),
        (
            "distillation.temperature.x=1",
            "distillation.temperature.x: distillation.temperature is 4.0, which holds no keys. Set distillation.temperature as a whole",
        ),
        (
            "distillation.intermediate_matches.1.weight=1",
            "distillation.intermediate_matches.1: distillation.intermediate_matches has only the element 0",
        ),
        (
            "distillation.intermediate_matches.x=1",
            "distillation.intermediate_matches.x: distillation.intermediate_matches has only the element 0",
        ),
        (
            "distillation.plugins.require.0=1",
            "distillation.plugins.require.0: distillation.plugins.require is empty. Set distillation.plugins.require as a whole",
        ),
        (
            "distillation.intermediate_matches.0.los=cos",
            "distillation.intermediate_matches.0.los: unknown key. Did you mean 'loss'?",
        ),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(base, override, says):
    with pytest.raises(UnknownKeyError, match=f"^{re.escape(says)}$"):
        base.with_overrides([override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.lr", "'training.lr' is not an override. Write path=value, such as training.lr=1e-3"),
        ("=3", "'=3' is not an override"),
        (
            "task.name=*.x",
            (
                "the value in 'task.name=*.x', line 1, column 1: found undefined alias '.x'. Put a value with * in quotes, "
                "which YAML would read as an alias: 'task.name=\"*…\"'"
            ),
        ),
        ("training.lr=[1", "the value in 'training.lr=[1', line 1, column 3: "),
        ("training.lr=fast", "training.lr: must be a number, got 'fast'"),
        ("training=3", "training: must be a mapping, got 3"),
        ("distillation.kd_loss_type=blendd", "distillation.kd_loss_type: no loss named 'blendd'. Did you mean 'blend'"),
    ],
)
def test_a_change_that_is_not_valid_is_refused_with_its_path(base, override, says):
    with pytest.raises(KdplugError, match=f"^{re.escape(says)}"):
        base.with_overrides([override])


def test_two_lengths_say_how_to_drop_one(base):
    with pytest.raises(
        ConfigError,
        match=r"^training: set exactly one of num_epochs and num_steps, got 2 and 9\. Set one of the two to null$",
    ):
        base.with_overrides(["training.num_steps=9"])
