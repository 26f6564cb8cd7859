from __future__ import annotations

import re

import pytest

from kdplug.config.match import IntermediateMatch
from kdplug.errors import ConfigError


def test_a_match_needs_four_keys_and_weighs_1(match):
    found = IntermediateMatch(**match)
    assert (found.layer_T, found.layer_S, found.feature, found.loss.name) == (10, 3, "hidden", "hidden_mse")
    assert (found.weight, found.weight_scheduler, found.proj, found.name) == (1.0, None, None, None)


@pytest.mark.parametrize("key", ["layer_T", "layer_S", "feature", "loss"])
def test_each_of_the_four_is_required(match, key):
    del match[key]
    with pytest.raises(ConfigError, match=f"^{key}: is required"):
        IntermediateMatch(**match)


@pytest.mark.parametrize(("teacher", "student"), [(-1, -1), ([12, 12], [3, 3]), ((8,), [2])])
def test_layers_are_two_indices_or_two_lists(match, teacher, student):
    found = IntermediateMatch(**{**match, "layer_T": teacher, "layer_S": student})
    assert found.layer_T == (tuple(teacher) if isinstance(teacher, (list, tuple)) else teacher)
    assert IntermediateMatch.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        (1, [1], "layer_T and layer_S must both be single layers or both be lists, got 1 and [1]"),
        ([1, 2], 1, "layer_T and layer_S must both be single layers or both be lists, got [1, 2] and 1"),
        ([1, 2], [1], "layer_T and layer_S must have the same length, got [1, 2] and [1]"),
        (
            [],
            [],
            (
                "2 problems:\n    layer_T: the list is empty: name at least one layer\n    layer_S: the list is empty: "
                "name at least one layer"
            ),
        ),
        (1.0, 1, "layer_T: must be the index of a layer, the path of a module, or a list of these, got 1.0"),
        (True, 1, "layer_T: must be the index of a layer, the path of a module, or a list of these, got True"),
        (None, 1, "layer_T: must be the index of a layer, the path of a module, or a list of these, got None"),
        (
            [1, 1.5],
            [1, 2],
            "layer_T.1: must be the index of a layer, the path of a module, or a list of these, got 1.5",
        ),
    ],
)
def test_layers_that_do_not_pair_up_are_refused(match, teacher, student, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        IntermediateMatch(**{**match, "layer_T": teacher, "layer_S": student})


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ("hiden", "feature: must be 'hidden' or 'attention', got 'hiden'. Did you mean 'hidden'?"),
        ("logits", "feature: must be 'hidden' or 'attention', got 'logits'"),
        (None, "feature: must be 'hidden' or 'attention', got None"),
    ],
)
def test_an_unknown_feature_is_named_with_the_nearest(match, feature, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        IntermediateMatch(**{**match, "feature": feature})


def test_a_scheduler_without_a_weight_scales_1(match):
    assert IntermediateMatch(**match, weight_scheduler="linear_decay").weight == 1.0


def test_a_scheduler_of_weight_0_is_refused(match):
    with pytest.raises(ConfigError, match=r"^weight: is 0, so weight_scheduler has no effect"):
        IntermediateMatch(**match, weight=0, weight_scheduler="linear_decay")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("kd_loss", "'kd_loss' is the name of a built-in term. Choose another name"),
        ("hard_label_loss", "'hard_label_loss' is the name of a built-in term. Choose another name"),
        ("", "must be text that is not empty, got ''"),
        (" ", "must not be blank"),
        (3, "must be text, got 3"),
    ],
)
def test_a_name_that_cannot_name_a_term_is_refused(match, name, says):
    with pytest.raises(ConfigError, match=f"^name: {re.escape(says)}$"):
        IntermediateMatch(**match, name=name)
