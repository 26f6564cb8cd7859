from __future__ import annotations

import re

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import ConfigError, NotInstalledError
from kdplug.host.active import isolated
from kdplug.host.registry import losses


def test_the_keys_and_defaults_are_those_of_textbrewer_and_a_balancer_a_combiner_a_layer_map_and_plugins():
    assert DistillationConfig().to_dict() == {
        "temperature": 4,
        "temperature_scheduler": "none",
        "kd_loss_type": "ce",
        "kd_loss_weight": 1,
        "kd_loss_weight_scheduler": "none",
        "hard_label_weight": 0,
        "hard_label_weight_scheduler": "none",
        "balancer": "none",
        "teacher_combiner": "mean_logits",
        "teacher_update": "none",
        "logit_chunk": "auto",
        "padded_vocabulary": "refuse",
        "probability_shift": False,
        "is_caching_logits": False,
        "intermediate_matches": [],
        "layer_map": None,
        "plugins": {"require": [], "hooks": []},
    }


@pytest.mark.parametrize("word", [None, [], (), "none"])
def test_no_matches_are_written_in_any_way(word):
    assert DistillationConfig(intermediate_matches=word).intermediate_matches == ()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("temperature", 0, "must be > 0, got 0"),
        ("temperature", -3.5, "must be > 0, got -3.5"),
        ("temperature", True, "must be a number, got True. A boolean is not a number"),
        ("temperature", "4", "must be a number, got '4'. Write it without quotes: 4"),
        ("temperature", "1e-3", "must be a number, got '1e-3'. Write it without quotes: 0.001"),
        ("temperature", "hot", "must be a number, got 'hot'"),
        ("temperature", None, "must be a number, got None"),
        ("temperature", float("nan"), "must be a finite number, got nan"),
        ("temperature", float("inf"), "must be a finite number, got inf"),
        ("temperature", 10**400, "must be a number, got 1000"),
        ("kd_loss_weight", -1, "must be >= 0, got -1"),
        ("kd_loss_weight", float("inf"), "must be a finite number, got inf"),
        ("hard_label_weight", [1], "must be a number, got [1]"),
        ("probability_shift", 1, "must be true or false, got 1"),
        (
            "probability_shift",
            "yes",
            "must be true or false, got 'yes'. Write true or false, without quotes",
        ),
        ("is_caching_logits", "maybe", "must be true or false, got 'maybe'"),
        ("intermediate_matches", 5, "must be a list, got 5"),
        ("plugins", ["kdplug"], "must be a mapping, got ['kdplug']"),
    ],
)
def test_a_wrong_value_is_refused_in_words(key, value, says):
    with pytest.raises(ConfigError, match=rf"^{key}: {re.escape(says)}") as caught:
        DistillationConfig(**{key: value})
    assert says.startswith("must be a number, got 1000") or str(caught.value) == f"{key}: {says}"


def test_a_number_is_kept_as_a_float():
    assert type(DistillationConfig(temperature=8).temperature) is float


def test_the_cache_of_logits_is_a_key_like_any_other():
    assert DistillationConfig(is_caching_logits=True).is_caching_logits


@pytest.mark.parametrize("weight", ["kd_loss_weight", "hard_label_weight"])
def test_a_scheduler_without_a_weight_scales_1(weight):
    config = DistillationConfig(**{f"{weight}_scheduler": "linear_decay"})
    assert getattr(config, weight) == 1
    assert DistillationConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("weight", ["kd_loss_weight", "hard_label_weight"])
def test_a_scheduler_keeps_a_weight_that_is_given(weight):
    assert getattr(DistillationConfig(**{f"{weight}_scheduler": "linear_decay", weight: 0.5}), weight) == 0.5


def test_a_scheduler_of_weight_0_has_no_effect_and_is_refused():
    with pytest.raises(ConfigError) as caught:
        DistillationConfig(hard_label_weight=0, hard_label_weight_scheduler="linear_growth")
    assert str(caught.value) == (
        "hard_label_weight: is 0, so hard_label_weight_scheduler has no effect. "
        "Leave hard_label_weight out for a base weight of 1, or remove hard_label_weight_scheduler"
    )


@pytest.mark.parametrize("matches", [[], [{"weight": 0}]])
def test_a_config_whose_every_term_is_off_is_refused(match, matches):
    with pytest.raises(ConfigError, match=r"^every term is disabled: kd_loss_weight and hard_label_weight are 0"):
        DistillationConfig(kd_loss_weight=0, intermediate_matches=[{**match, **one} for one in matches])


@pytest.mark.parametrize("on", [{"kd_loss_weight": 1}, {"hard_label_weight": 1, "kd_loss_weight": 0}])
def test_one_term_that_is_on_suffices(on):
    assert DistillationConfig(**on)


def test_the_default_loss_is_looked_up_where_it_is_used():
    with (
        isolated(),
        pytest.raises(
            NotInstalledError, match=r"^kd_loss_type: 'ce' is not installed\. .* pip install kdplug-presets$"
        ),
    ):
        DistillationConfig()


def test_the_default_loss_is_not_looked_up_where_it_is_off():
    with isolated():
        config = DistillationConfig(kd_loss_weight=0, hard_label_weight=1)
        assert DistillationConfig.from_dict(config.to_dict()).resolved() == config


def test_a_loss_of_this_process_works_without_any_plugin():
    with isolated():
        losses.register("mine")(lambda student_logits, teacher_logits: None)
        assert DistillationConfig(kd_loss_type="mine").resolved().terms[0].loss.name == "local:mine"


def test_two_matches_of_one_name_are_refused(match):
    matches = [{**match, "name": "first"}, {**match, "name": "second"}, {**match, "name": "first"}]
    says = (
        r"^intermediate_matches\.2\.name: 'first' is already the name of intermediate_matches\.0\. Choose another name$"
    )
    with pytest.raises(ConfigError, match=says):
        DistillationConfig(intermediate_matches=matches)


def test_matches_without_a_name_do_not_clash(match):
    assert len(DistillationConfig(intermediate_matches=[match, match]).intermediate_matches) == 2


def test_the_callers_data_is_left_as_it_is(match):
    data = {
        "hard_label_weight_scheduler": "linear_decay",
        "intermediate_matches": [{**match, "proj": ["linear", 3, 5]}],
    }
    before = repr(data)
    DistillationConfig.from_dict(data).resolved()
    assert repr(data) == before


def test_a_temperature_whose_square_overflows_is_an_error():
    with pytest.raises(ConfigError, match=r"^temperature: must be <= 1e\+15, got 1e\+308"):
        DistillationConfig(temperature=1e308)
