"""Recipes that ``kdplug new`` writes for tasks on pretrained encoders."""

from __future__ import annotations

import pytest

import kdplug
from kdplug.cli.new import recipe_text
from kdplug.config.recipe import Recipe
from kdplug_tasks.setting import FINE_TUNING

SENTENCES = {"text-classification", "text-pair-classification", "token-classification", "question-answering"}
NUMBERS = {"regression", "multi-label"}


def new(task: str) -> Recipe:
    text, _ = recipe_text("new.yaml", task, kdplug.tasks.entry(task))
    return Recipe.from_yaml(text)


@pytest.mark.parametrize("task", sorted(SENTENCES | NUMBERS))
def test_a_new_recipe_fine_tunes_as_it_was_measured(task: str) -> None:
    training = new(task).training
    assert {key: getattr(training, key) for key in FINE_TUNING} == FINE_TUNING


@pytest.mark.parametrize("task", sorted(NUMBERS))
def test_outputs_that_exclude_nothing_are_not_compared_by_a_softmax(task: str) -> None:
    assert new(task).distillation.kd_loss_type.name == "mse"


@pytest.mark.parametrize("task", sorted(SENTENCES))
def test_the_gradient_of_the_kd_loss_does_not_depend_on_the_temperature(task: str) -> None:
    distillation = new(task).distillation
    assert distillation.kd_loss_type.settings["t2"] is True
    assert (distillation.kd_loss_weight, distillation.hard_label_weight) == (1, 1)


def test_images_also_compare_the_last_feature_maps_whatever_their_widths() -> None:
    (match,) = new("image-classification").distillation.intermediate_matches
    written = match.to_dict()
    assert (written["layer_T"], written["layer_S"], written["loss"]) == (-1, -1, "hidden_mse")
    assert written["proj"] == ["linear", "auto", "auto"]


def test_a_language_model_warms_up_and_is_clipped() -> None:
    training = new("causal-lm").training
    assert (training.warmup, training.max_grad_norm) == (0.1, 1)
