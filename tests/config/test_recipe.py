from __future__ import annotations

import re

import pytest

from kdplug.config.recipe import Recipe
from kdplug.errors import ConfigError, UnknownEntryError, UnknownKeyError


def test_a_recipe_needs_a_task_what_to_distil_and_a_length(recipe):
    found = Recipe.from_dict(recipe)
    assert (found.task.name, found.distillation.temperature, found.training.num_epochs, found.seed) == (
        "digits",
        4,
        2,
        0,
    )
    assert (found.training.optimizer, found.training.lr_schedule, found.training.warmup) == ("AdamW", "none", 0)


@pytest.mark.parametrize("task", ["digits", "kdplug-tasks:digits", ["digits"], {"name": "digits"}])
def test_results_go_to_a_folder_named_for_the_task(recipe, task):
    assert Recipe.from_dict({**recipe, "task": task}).output_dir == "runs/digits"


def test_a_folder_that_is_given_is_kept(recipe):
    assert Recipe.from_dict({**recipe, "output_dir": "here"}).output_dir == "here"


@pytest.mark.parametrize("length", [{}, {"num_epochs": None}, {"num_epochs": 1, "num_steps": 5}])
def test_a_recipe_has_exactly_one_length(recipe, length):
    with pytest.raises(ConfigError, match=r"^training: set exactly one of num_epochs and num_steps, got "):
        Recipe.from_dict({**recipe, "training": length})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lr", 0, "must be > 0, got 0"),
        ("lr", "1e-3", "must be a number, got '1e-3'. Write it without quotes: 0.001"),
        ("warmup", 1, "must be < 1, got 1"),
        ("warmup", -0.1, "must be >= 0, got -0.1"),
        ("lr_schedule", "cosin", "must be 'none', 'linear' or 'cosine', got 'cosin'. Did you mean 'cosine'?"),
        (
            "optimizer",
            "torch.optim.Adam",
            "must be the name of a class in torch.optim, such as AdamW, got 'torch.optim.Adam'",
        ),
        ("max_grad_norm", 0, "must be > 0, got 0"),
        ("num_epochs", 2.5, "must be a whole number, got 2.5"),
        ("output_dir", "here", "belongs at the top level of a recipe, next to 'training' and not inside it"),
        ("seed", 1, "belongs at the top level of a recipe, next to 'training' and not inside it"),
        ("epochs", 1, "is called num_epochs here"),
        ("learning_rate", 1, "is called lr here"),
        ("lerning_rate", 1, "unknown key. Did you mean 'learning_rate'? It is called lr here"),
        ("max_step", 1, "unknown key. Did you mean 'max_steps'? It is called num_steps here"),
        ("num_step", 1, "unknown key. Did you mean 'num_steps'?"),
        (
            "local_rank",
            1,
            "was removed. For several devices, start the script with 'accelerate launch', which sets the rank",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(recipe, key, value, says):
    with pytest.raises(ConfigError, match=rf"^training\.{key}: {re.escape(says)}$"):
        Recipe.from_dict({**recipe, "training": {"num_epochs": 2, key: value}})


def test_no_schedule_may_be_written_as_null(recipe):
    assert (
        Recipe.from_dict({**recipe, "training": {"num_steps": 5, "lr_schedule": None}}).training.lr_schedule == "none"
    )


def test_a_wrong_value_deep_inside_is_named_with_the_whole_path(recipe, match):
    recipe["distillation"] = {"intermediate_matches": [{**match, "proj": ["linear", 3, "x"]}]}
    with pytest.raises(
        ConfigError, match=r"^distillation\.intermediate_matches\.0\.proj\.2: the teacher width must be"
    ):
        Recipe.from_dict(recipe)


def test_an_unknown_task_is_named_with_the_nearest(recipe):
    with pytest.raises(UnknownEntryError, match=r"^task: no task named 'digit'\. Did you mean 'digits'"):
        Recipe.from_dict({**recipe, "task": "digit"})


def test_an_unknown_key_is_named_with_the_nearest(recipe):
    with pytest.raises(UnknownKeyError, match=r"^distilation: unknown key\. Did you mean 'distillation'\?$"):
        Recipe.from_dict({**recipe, "distilation": {}})


def test_a_recipe_round_trips(recipe):
    found = Recipe.from_dict(recipe)
    assert Recipe.from_yaml(found.to_yaml()) == Recipe.from_json(found.to_json()) == found


def test_what_a_distiller_needs_comes_from_both_levels(recipe):
    recipe |= {"seed": 7, "output_dir": "here", "training": {"num_epochs": 1, "precision": "bf16", "log_dir": "log"}}
    found = Recipe.from_dict(recipe).training_config()
    assert (found.seed, found.output_dir, found.precision, found.log_dir) == (7, "here", "bf16", "log")
    assert Recipe.from_dict(recipe).training_config("there").output_dir == "there"
