"""Layer maps in the JSON Schema of a recipe, and in kdplug."""

from __future__ import annotations

import pytest
from jsonschema import Draft7Validator
from schema_place import changed, places, refused

from kdplug.config.schema.build import schema_of
from kdplug.host.registry import layer_maps

MAP = "distillation.layer_map"
RULE = {"name": "uniform", "feature": "hidden", "loss": "hidden_mse"}
WRONG_MAPS = {
    "an unknown layer map": ({**RULE, "name": "unifrom"}, f"{MAP}.name"),
    "a map that is text": ("uniform", MAP),
    "a weight of 0 with a scheduler": ({**RULE, "weight": 0, "weight_scheduler": "linear_decay"}, f"{MAP}.weight"),
    "modules that are counted": ({**RULE, "layer_T": "a.*", "layers_T": 3}, f"{MAP}.layers_T"),
    "no feature": ({"name": "uniform", "loss": "hidden_mse", "layer_T": "a.*"}, f"{MAP}.feature"),
    "a wrong loss in the second of two": ([RULE, {**RULE, "loss": "ce"}], f"{MAP}.1.loss"),
    "modules by index": ({**RULE, "layer_T": 3}, f"{MAP}.layer_T"),
}


@pytest.fixture
def layer_map():
    @layer_maps.register("uniform")
    def uniform(student_layers, teacher_layers):
        """Every layer with itself."""
        return [(1, 1)]


@pytest.mark.parametrize(("value", "where"), WRONG_MAPS.values(), ids=WRONG_MAPS.keys())
@pytest.mark.usefixtures("layer_map")
def test_a_wrong_layer_map_is_refused_by_both_at_the_same_place(recipe, value, where):
    data = changed(recipe, distillation={"layer_map": value})
    assert places(Draft7Validator(schema_of("recipe").data), data) == {where}
    assert refused(data) == where


@pytest.mark.parametrize("value", [None, "none", RULE, [RULE, RULE], {**RULE, "layer_T": "a.*", "layers_S": 3}])
@pytest.mark.usefixtures("layer_map")
def test_a_right_layer_map_is_accepted_by_both(recipe, value):
    data = changed(recipe, distillation={"layer_map": value, "kd_loss_weight": 0, "hard_label_weight": 1})
    assert (places(Draft7Validator(schema_of("recipe").data), data), refused(data)) == (set(), None)
