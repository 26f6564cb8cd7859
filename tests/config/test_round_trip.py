"""Laws over configs that Hypothesis makes: what is written is read back, and junk raises our errors only."""

from __future__ import annotations

import pytest
from config_strategy import distillations, junk_values, matches
from hypothesis import given, settings
from hypothesis import strategies as st

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.errors import KdplugError


def _made(make):
    """What ``make`` makes, or nothing where it raises an error of ours."""
    try:
        return make()
    except KdplugError:
        return None


@given(distillations)
@settings(max_examples=150, deadline=None)
def test_every_config_survives_dict_json_and_yaml(data):
    config = DistillationConfig.from_dict(data)
    assert DistillationConfig.from_dict(config.to_dict()) == config
    assert DistillationConfig.from_json(config.to_json()) == config
    assert DistillationConfig.from_yaml(config.to_yaml()) == config


@given(distillations, st.data())
@settings(max_examples=300, deadline=None)
def test_junk_in_any_place_raises_our_errors_only(data, draw):
    key = draw.draw(st.sampled_from([*DistillationConfig.model_fields, "zzz"]))
    data = {**data, key: draw.draw(junk_values)}
    config = _made(lambda: DistillationConfig.from_dict(data))
    assert config is None or DistillationConfig.from_yaml(config.to_yaml()) == config


@given(
    matches,
    st.sampled_from(["layer_T", "layer_S", "feature", "loss", "weight", "weight_scheduler", "proj", "name"]),
    junk_values,
)
@settings(max_examples=300, deadline=None)
def test_junk_in_a_match_raises_our_errors_only(match, key, junk):
    config = _made(lambda: DistillationConfig(intermediate_matches=[{**match, key: junk}]))
    assert config is None or DistillationConfig.from_json(config.to_json()) == config


@given(st.sampled_from([TrainingConfig, Recipe, DistillationConfig]), junk_values)
@settings(max_examples=200, deadline=None)
def test_junk_for_a_whole_config_raises_our_errors_only(model, junk):
    keys = list(model.model_fields)
    data = dict(zip(keys, junk, strict=False)) if isinstance(junk, list) else junk
    _made(lambda: model.from_dict(data))


@given(st.text(max_size=60) | st.text(alphabet="ab:-[]{},&*!|>'\"#?%@ \n\t1e.", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_in_our_words(text):
    _made(lambda: DistillationConfig.from_yaml(text))
    _made(lambda: DistillationConfig.from_json(text))


@given(st.text(max_size=40) | st.text(alphabet="training.lr=01[]{}:, ", max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_override_is_made_or_refused_in_our_words(override):
    recipe = Recipe(task="digits", distillation={}, training={"num_epochs": 1})
    _made(lambda: recipe.with_overrides([override]))


@pytest.mark.parametrize("value", [1e15, 1e-300, 1.0, 123456789.123, 5e-324])
def test_numbers_keep_every_digit_in_text(value):
    config = DistillationConfig(temperature=value)
    assert DistillationConfig.from_yaml(config.to_yaml()).temperature == value
    assert DistillationConfig.from_json(config.to_json()).temperature == value
