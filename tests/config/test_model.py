from __future__ import annotations

import copy
import pickle

import pytest
from pydantic import ValidationError

from kdplug.config.distillation import DistillationConfig
from kdplug.config.match import IntermediateMatch
from kdplug.config.training import TrainingConfig
from kdplug.errors import ConfigError, KdplugError, UnknownEntryError, UnknownKeyError

_WAYS = [lambda data: DistillationConfig(**data), DistillationConfig.from_dict, DistillationConfig.model_validate]


@pytest.mark.parametrize("make", _WAYS)
def test_each_way_to_make_a_config_gives_the_same_error(make):
    with pytest.raises(ConfigError) as caught:
        make({"temperature": 0})
    assert str(caught.value) == "temperature: must be > 0, got 0"
    assert not isinstance(caught.value, ValidationError)


def test_json_that_pydantic_reads_gives_our_error_too():
    with pytest.raises(ConfigError, match=r"^temperature: must be > 0, got 0$"):
        DistillationConfig.model_validate_json('{"temperature": 0}')


@pytest.mark.parametrize("make", _WAYS)
def test_an_unknown_key_is_named_with_the_nearest_one(make):
    with pytest.raises(UnknownKeyError, match=r"^temprature: unknown key\. Did you mean 'temperature'\?$"):
        make({"temprature": 4})


def test_an_unknown_key_of_a_match_is_compared_with_the_keys_of_a_match(match):
    with pytest.raises(
        UnknownKeyError, match=r"^intermediate_matches\.0\.wieght: unknown key\. Did you mean 'weight'\?$"
    ):
        DistillationConfig(intermediate_matches=[{**match, "wieght": 2}])


def test_a_key_that_is_like_no_other_lists_the_known_keys():
    with pytest.raises(UnknownKeyError, match=r"^plugins\.zzz: unknown key\. The keys here are: require, hooks$"):
        DistillationConfig(plugins={"zzz": 1})


def test_several_problems_are_one_error_with_a_line_for_each(match):
    data = {
        "temperature": True,
        "intermediate_matches": [match, {**match, "weight": -1, "loss": "hiden_mse"}],
        "zzzz": 1,
    }
    with pytest.raises(ConfigError) as caught:
        DistillationConfig(**data)
    first, *lines = str(caught.value).splitlines()
    assert first == "4 problems:"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "temperature",
        "intermediate_matches.1.loss",
        "intermediate_matches.1.weight",
        "zzzz",
    ]


def test_one_problem_keeps_its_own_class():
    with pytest.raises(UnknownEntryError):
        DistillationConfig(kd_loss_type="cee")


def test_a_nested_model_reports_to_the_outer_one(match):
    with pytest.raises(
        KdplugError,
        match=r"^intermediate_matches\.0: layer_T and layer_S must have the same length, got \[1\] and \[1, 2\]$",
    ):
        DistillationConfig(intermediate_matches=[{**match, "layer_T": [1], "layer_S": [1, 2]}])


@pytest.mark.parametrize("data", [5, None, [1], "text"])
def test_a_config_is_made_of_a_mapping(data):
    with pytest.raises(ConfigError, match=r"^DistillationConfig\.from_dict takes a mapping of keys to values, got "):
        DistillationConfig.from_dict(data)
    with pytest.raises(ConfigError, match=r"^must be a mapping, got "):
        DistillationConfig.model_validate(data)


def test_a_match_that_is_no_mapping_is_an_error():
    with pytest.raises(ConfigError, match=r"^intermediate_matches\.0: must be a mapping, got 'hidden_mse'$"):
        DistillationConfig(intermediate_matches=["hidden_mse"])


def test_a_key_that_is_not_text_is_an_error():
    with pytest.raises(ConfigError, match=r"^1: must be text, like every key, got 1$"):
        DistillationConfig.from_dict({1: 2})


def test_a_config_is_frozen(match):
    config = DistillationConfig(intermediate_matches=[match])
    with pytest.raises(ValidationError, match=r"frozen"):
        config.temperature = 3
    assert isinstance(config.intermediate_matches, tuple)


def test_a_match_may_be_an_object(match):
    assert DistillationConfig(intermediate_matches=[IntermediateMatch(**match)]) == DistillationConfig(
        intermediate_matches=[match]
    )


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_and_pickles_are_equal(again, match):
    config = DistillationConfig(
        temperature_scheduler=["flsw", 1, 1],
        kd_loss_type={"name": "blend", "alpha": [1, {"a": 2}]},
        intermediate_matches=[{**match, "proj": ["linear", 3, 5, {"lr": 1e-3}]}],
    )
    assert again(config) == config


def test_configs_with_different_values_differ():
    assert DistillationConfig(temperature=2) != DistillationConfig(temperature=3)
    assert DistillationConfig(kd_loss_type=["blend", 1]) != DistillationConfig(kd_loss_type=["blend", 2])


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    with pytest.raises(ConfigError, match=r"^temperature: must be a number, got something of type int$"):
        DistillationConfig(temperature=10**5000)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(log_dir=["x" * 1000])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("model", [DistillationConfig, TrainingConfig])
def test_a_json_schema_can_be_made(model):
    schema = model.model_json_schema()
    assert set(schema["properties"]) - {"fp16"} == set(model.model_fields)  # another spelling of precision
    assert schema["additionalProperties"] is False
