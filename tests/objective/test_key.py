"""Which adaptor keys an objective reads."""

from __future__ import annotations

import pytest

import kdplug
from kdplug import DistillationConfig, Objective
from kdplug.recipes.task import required_keys


@pytest.fixture(autouse=True)
def _entries(no_plugins):
    kdplug.losses.register("soft")(lambda student_logits, teacher_logits: student_logits.mean())
    kdplug.losses.register("near")(lambda student_features, teacher_features, mask: student_features.mean())
    kdplug.layer_maps.register("uniform")(lambda student_layers, teacher_layers: [])


HIDDEN = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "near"}


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"kd_loss_weight": 1}, {"logits", "logits_mask"}),
        ({"kd_loss_weight": 0, "hard_label_weight": 1}, {"losses"}),
        ({"probability_shift": True}, {"logits", "logits_mask", "labels"}),
        ({"kd_loss_weight": 0, "intermediate_matches": [HIDDEN]}, {"hidden", "inputs_mask"}),
        ({"intermediate_matches": [{**HIDDEN, "weight": 0}]}, {"logits", "logits_mask"}),
    ],
)
def test_keys_are_those_that_a_term_reads(config, keys):
    assert required_keys(Objective(DistillationConfig(kd_loss_type="soft", **config))) == keys


def test_extras_are_a_key_of_their_own():
    kdplug.losses.register("extra")(lambda student_extras: student_extras["a"].mean())
    assert required_keys(Objective(DistillationConfig(terms=[{"loss": "extra", "extras": ["a"]}]))) == {"extras"}


def test_features_by_path_are_captured_and_not_asked_for_but_attention_has_to_be_computed():
    paths = {"layer_T": "encoder.0", "layer_S": "encoder.0"}
    for feature, keys in (("hidden", set()), ("attention", {"attention"})):
        match = {**paths, "feature": feature, "loss": "near"}
        found = required_keys(Objective(DistillationConfig(kd_loss_weight=0, intermediate_matches=[match])))
        assert found - {"inputs_mask"} == keys


def test_a_layer_map_that_waits_counts_as_reading_its_feature():
    layer_map = {"name": "uniform", "feature": "hidden", "loss": "near"}
    assert "hidden" in required_keys(Objective(DistillationConfig(kd_loss_type="soft", layer_map=layer_map)))
