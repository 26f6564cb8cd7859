"""Laws over configs that Hypothesis makes: what is written is read back, and junk raises our errors only."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.errors import KdplugError

_numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
_scalars = st.none() | st.booleans() | _numbers | st.text(max_size=8)
_plain = st.recursive(
    _scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)
_weights = st.floats(1e-6, 1e6) | st.integers(1, 100)
_settings = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key not in ("name", "in_dim", "out_dim", "options")),
    _plain,
    max_size=2,
)


def _components(*names):
    name = st.sampled_from(names)
    listed = st.builds(lambda n, args: [n, *args], name, st.lists(_plain, max_size=3))
    return name | listed | st.builds(lambda n, values: {**values, "name": n}, name, _settings)


_schedulers = st.sampled_from([None, "none"]) | _components("linear_decay", "linear_growth")
_widths = st.just("auto") | st.integers(1, 4096)
_options = st.fixed_dictionaries(
    {}, optional={"lr": st.floats(0, 1), "betas": st.lists(st.floats(0, 1), min_size=2, max_size=2)}
)
_projections = (
    st.sampled_from([None, "linear"])
    | st.tuples(_components("linear", "relu"), _widths, _widths).map(list)
    | st.tuples(_components("linear", "relu"), _widths, _widths, _options).map(list)
    | st.builds(lambda values, width: {**values, "name": "relu", "in_dim": width}, _settings, _widths)
)
_layers = st.tuples(st.integers(-12, 12), st.integers(-12, 12)) | st.integers(1, 3).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-12, 12), min_size=n, max_size=n)] * 2)
)
_matches = st.builds(
    lambda layers, rest: {"layer_T": layers[0], "layer_S": layers[1], **rest},
    _layers,
    st.fixed_dictionaries(
        {"feature": st.sampled_from(["hidden", "attention"]), "loss": _components("hidden_mse", "fsp")},
        optional={"weight": _weights, "weight_scheduler": _schedulers, "proj": _projections},
    ),
)
_distillations = st.fixed_dictionaries(
    {},
    optional={
        "temperature": _weights,
        "temperature_scheduler": st.sampled_from([None, "none"]) | _components("flsw"),
        "kd_loss_type": _components("ce", "blend"),
        "kd_loss_weight": _weights,
        "kd_loss_weight_scheduler": _schedulers,
        "hard_label_weight": _weights,
        "hard_label_weight_scheduler": _schedulers,
        "probability_shift": st.booleans(),
        "logit_chunk": st.sampled_from(["auto", "whole", 1, 512]),
        "padded_vocabulary": st.sampled_from(["refuse", "drop"]),
        "is_caching_logits": st.booleans(),
        "intermediate_matches": st.lists(_matches, max_size=3),
    },
)
_junk = st.recursive(
    _scalars | st.floats() | st.binary(max_size=3) | st.just(object()) | st.integers(),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "in_dim", "options", "loss", "lr"]) | st.text(max_size=3) | st.integers(),
            below,
            max_size=3,
        )
        | st.tuples(st.sampled_from(["linear", "ce", "hidden_mse"]), below, below)
    ),
    max_leaves=8,
)


def _made(make):
    """What ``make`` makes, or nothing where it raises an error of ours."""
    try:
        return make()
    except KdplugError:
        return None


@given(_distillations)
@settings(max_examples=150, deadline=None)
def test_every_config_survives_dict_json_and_yaml(data):
    config = DistillationConfig.from_dict(data)
    assert DistillationConfig.from_dict(config.to_dict()) == config
    assert DistillationConfig.from_json(config.to_json()) == config
    assert DistillationConfig.from_yaml(config.to_yaml()) == config


@given(_distillations, st.data())
@settings(max_examples=300, deadline=None)
def test_junk_in_any_place_raises_our_errors_only(data, draw):
    key = draw.draw(st.sampled_from([*DistillationConfig.model_fields, "zzz"]))
    data = {**data, key: draw.draw(_junk)}
    config = _made(lambda: DistillationConfig.from_dict(data))
    assert config is None or DistillationConfig.from_yaml(config.to_yaml()) == config


@given(
    _matches,
    st.sampled_from(["layer_T", "layer_S", "feature", "loss", "weight", "weight_scheduler", "proj", "name"]),
    _junk,
)
@settings(max_examples=300, deadline=None)
def test_junk_in_a_match_raises_our_errors_only(match, key, junk):
    config = _made(lambda: DistillationConfig(intermediate_matches=[{**match, key: junk}]))
    assert config is None or DistillationConfig.from_json(config.to_json()) == config


@given(st.sampled_from([TrainingConfig, Recipe, DistillationConfig]), _junk)
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


@pytest.mark.parametrize("value", [1e16, 1e-300, 1.0, 123456789.123, 5e-324, 1.7976931348623157e308])
def test_numbers_keep_every_digit_in_text(value):
    config = DistillationConfig(temperature=value)
    assert DistillationConfig.from_yaml(config.to_yaml()).temperature == value
    assert DistillationConfig.from_json(config.to_json()).temperature == value


_OF_THE_WHOLE = ("every term is off", *(f"{count} problems:" for count in range(2, 40)))
"""Beginnings of the messages that are about no single field, or that list several with theirs."""


def _error_of(make):
    try:
        make()
    except KdplugError as error:
        return error
    return None


@pytest.mark.slow
@given(_distillations, st.data())
@settings(max_examples=10_000, deadline=None)
def test_ten_thousand_mutated_configs_raise_our_errors_with_a_path_and_import_nothing(data, draw):
    before = set(sys.modules)
    for _ in range(draw.draw(st.integers(0, 2))):
        key = draw.draw(st.sampled_from([*DistillationConfig.model_fields, "zzz"]))
        data = {**data, key: draw.draw(_junk)}
    error = _error_of(lambda: DistillationConfig.from_dict(data))
    assert error is None or error.field or error.message.startswith(_OF_THE_WHOLE), error
    assert not {name for name in set(sys.modules) - before if name.startswith("kdplug_")}
