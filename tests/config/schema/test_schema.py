"""The JSON Schema of a recipe: what it accepts, what it refuses, and that kdplug does the same at the same place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from schema_place import AT, MATCH, changed, matches, places, refused

from kdplug.config.schema.build import schema_of


@pytest.fixture
def validator(host):
    return Draft7Validator(schema_of("recipe").data)


WRONG = {
    "an unknown key at the top": ({"trainin": {}}, "trainin"),
    "an unknown key below": ({"distillation": {"temprature": 4}}, "distillation.temprature"),
    "an unknown key in a match": (matches({"los": 1}), f"{AT}.los"),
    "a key of TextBrewer that is gone": ({"training": {"data_parallel": True}}, "training.data_parallel"),
    "text for a number": ({"training": {"lr": "1e-3"}}, "training.lr"),
    "a truth value for a number": ({"distillation": {"temperature": True}}, "distillation.temperature"),
    "a number for a truth value": ({"distillation": {"probability_shift": 1}}, "distillation.probability_shift"),
    "a fraction of an epoch": ({"training": {"num_epochs": 1.5}}, "training.num_epochs"),
    "a temperature of 0": ({"distillation": {"temperature": 0}}, "distillation.temperature"),
    "a negative weight": ({"distillation": {"kd_loss_weight": -1}}, "distillation.kd_loss_weight"),
    "warmup for the whole run": ({"training": {"warmup": 1}}, "training.warmup"),
    "a device that is none": ({"training": {"device": "gpu"}}, "training.device"),
    "a precision that is none": ({"training": {"precision": "fp8"}}, "training.precision"),
    "a learning rate schedule that is none": ({"training": {"lr_schedule": "cosin"}}, "training.lr_schedule"),
    "an optimizer that is no class name": ({"training": {"optimizer": "Adam W"}}, "training.optimizer"),
    "fp16 against precision": ({"training": {"fp16": True, "precision": "bf16"}}, "training.fp16"),
    "an empty output_dir": ({"output_dir": ""}, "output_dir"),
    "a negative seed": ({"seed": -1}, "seed"),
    "both lengths": ({"training": {"num_steps": 5}}, "training"),
    "neither length": ({"training": {"num_epochs": None}}, "training"),
    "a requirement that is no text": ({"plugins": {"require": [3]}}, "plugins.require.0"),
    "an unknown loss": ({"distillation": {"kd_loss_type": "cee"}}, "distillation.kd_loss_type"),
    "an unknown task": ({"task": "digit"}, "task"),
    "a match loss on logits": ({"distillation": {"kd_loss_type": "hidden_mse"}}, "distillation.kd_loss_type"),
    "a kd loss on features": (matches({"loss": "ce"}), f"{AT}.loss"),
    "a loss that is a number": ({"distillation": {"kd_loss_type": 3}}, "distillation.kd_loss_type"),
    "no component where one is needed": ({"distillation": {"kd_loss_type": "none"}}, "distillation.kd_loss_type"),
    "an empty list": ({"distillation": {"kd_loss_type": []}}, "distillation.kd_loss_type"),
    "a setting out of bounds": (
        {"distillation": {"temperature_scheduler": {"name": "flsw", "beta": 1, "gamma": -1}}},
        "distillation.temperature_scheduler.gamma",
    ),
    "a required setting missing from a mapping": (
        {"distillation": {"temperature_scheduler": {"name": "flsw", "beta": 1}}},
        "distillation.temperature_scheduler.gamma",
    ),
    "a setting of the wrong type": (
        {"distillation": {"kd_loss_type": {"name": "blend", "alpha": "x"}}},
        "distillation.kd_loss_type.alpha",
    ),
    "a weight of 0 with a scheduler": (
        {"distillation": {"kd_loss_weight": 0, "hard_label_weight": 1, "kd_loss_weight_scheduler": "linear_decay"}},
        "distillation.kd_loss_weight",
    ),
    "a match of weight 0 with a scheduler": (
        matches({"weight": 0, "weight_scheduler": "linear_decay"}),
        f"{AT}.weight",
    ),
    "every term off": ({"distillation": {"kd_loss_weight": 0}}, "distillation"),
    "a layer that is a fraction": (matches({"layer_T": 1.5}), f"{AT}.layer_T"),
    "a layer path without a module": (matches({"layer_T": "encoder..3"}), f"{AT}.layer_T"),
    "a layer path in a list": (matches({"layer_T": [1, "a:outptu"], "layer_S": [0, 1]}), f"{AT}.layer_T.1"),
    "a layer path for one side, and no feature": (
        {"distillation": {"intermediate_matches": [{"layer_T": "a.b", "layer_S": 1, "loss": "hidden_mse"}]}},
        f"{AT}.feature",
    ),
    "a teacher that is no index": (matches({"teacher": -1}), f"{AT}.teacher"),
    "an index against a list": (matches({"layer_T": [1, 2]}), AT),
    "no layer at all": (matches({"layer_T": [], "layer_S": [1]}), f"{AT}.layer_T"),
    "a feature that is none": (matches({"feature": "hiden"}), f"{AT}.feature"),
    "the name of another term": (matches({"name": "kd_loss"}), f"{AT}.name"),
    "a projection without widths": (matches({"proj": ["linear", 384]}), f"{AT}.proj"),
    "a width of 0": (matches({"proj": ["linear", 0, 768]}), f"{AT}.proj.1"),
    "a width that is no auto": (matches({"proj": {"name": "linear", "in_dim": "atuo"}}), f"{AT}.proj.in_dim"),
    "a negative learning rate of a projection": (matches({"proj": ["linear", 1, 2, {"lr": -1}]}), f"{AT}.proj.3.lr"),
    "optimizer options that are no mapping": (matches({"proj": ["linear", 1, 2, 3]}), f"{AT}.proj.3"),
    "parameters among the options": (matches({"proj": ["linear", 1, 2, {"params": 1}]}), f"{AT}.proj.3.params"),
    "an unknown projection": (matches({"proj": "liner"}), f"{AT}.proj"),
}


@pytest.mark.parametrize(("change", "where"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_refused_by_both_at_the_same_place(validator, recipe, change, where):
    data = changed(recipe, **change)
    assert places(validator, data) == {where}
    assert refused(data) == where


SCHEDULER = "distillation.temperature_scheduler"
NEARBY = {
    "a setting by position: kdplug names it": (["flsw", 1, -1], f"{SCHEDULER}.2", f"{SCHEDULER}.gamma"),
    "too few settings by position": (["flsw", 1], SCHEDULER, f"{SCHEDULER}.gamma"),
    "too many settings by position": (["flsw", 1, 1, 1, 1], f"{SCHEDULER}.4", SCHEDULER),
    "a setting given twice": (["flsw", 1, 1, {"beta": 2}], f"{SCHEDULER}.3.beta", f"{SCHEDULER}.beta"),
    "a mapping that is not the last": (["flsw", {"beta": 1}, 1], f"{SCHEDULER}.1", f"{SCHEDULER}.beta"),
    "a name whose settings are required": ("flsw", SCHEDULER, f"{SCHEDULER}.beta"),
    "an unknown setting": ({"name": "flsw", "beta": 1, "gamma": 1, "x": 1}, f"{SCHEDULER}.x", SCHEDULER),
    "an unknown name in a mapping": ({"name": "flws"}, f"{SCHEDULER}.name", SCHEDULER),
    "an unknown name in a list": (["flws", 1], f"{SCHEDULER}.0", SCHEDULER),
    "a mapping without a name": ({"beta": 1}, f"{SCHEDULER}.name", SCHEDULER),
}


@pytest.mark.parametrize(("value", "where", "named"), NEARBY.values(), ids=NEARBY.keys())
def test_a_wrong_component_is_refused_by_both_by_one_step_apart(validator, recipe, value, where, named):
    data = changed(recipe, distillation={"temperature_scheduler": value})
    assert where in places(validator, data)
    assert refused(data) == named


UNSAID = {
    "lists of layers of different lengths": matches({"layer_T": [1, 2], "layer_S": [1]}),
    "two matches of one name": matches({"name": "a"}, {"name": "a"}),
    "a whole number with a point": {"training": {"num_epochs": 2.0}},
    "a package that is not installed": {"plugins": {"require": ["kdplug-nobody"]}},
    "an entry that cannot be imported": matches({"loss": "broken"}),
}


@pytest.mark.parametrize("change", UNSAID.values(), ids=UNSAID.keys())
def test_what_json_schema_cannot_say_is_refused_by_kdplug_alone(validator, recipe, change):
    data = changed(recipe, **change)
    assert places(validator, data) == set()
    assert refused(data) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"distillation": {"kd_loss_type": "CE"}},
        matches({"loss": "hidden-mse"}),
        {"distillation": {"kd_loss_type": ["blend", "0.5"]}},
    ],
    ids=["case", "hyphen", "a number in quotes"],
)
def test_what_kdplug_reads_kindly_is_marked_by_the_schema(validator, recipe, change):
    data = changed(recipe, **change)
    assert refused(data) is None
    assert places(validator, data) != set()


RIGHT = [
    {},
    {
        "distillation": {
            "temperature_scheduler": None,
            "kd_loss_weight_scheduler": "None",
            "intermediate_matches": "none",
        }
    },
    {"distillation": {"kd_loss_type": "kdplug-presets:blend", "intermediate_matches": None}},
    {"distillation": {"kd_loss_type": ["blend", 1, {"beta": 2}]}},
    {"distillation": {"kd_loss_type": ["ce", 1, 1, {}]}},
    {"distillation": {"kd_loss_weight": 0, "hard_label_weight_scheduler": ["linear_decay", {"power": 2}]}},
    {"distillation": {"kd_loss_weight": 0, "intermediate_matches": [MATCH]}},
    {"training": {"fp16": True}},
    {"training": {"fp16": False, "precision": "bf16", "device": "cuda:1", "lr_schedule": None, "num_steps": None}},
    matches({"layer_T": [1, 2], "layer_S": [-1, 0], "weight_scheduler": "linear_decay", "name": "a b"}),
    {
        "distillation": {
            "intermediate_matches": [{"layer_T": "a.*", "layer_S": ["b.0", "b.1:input[0].x"], "loss": "fsp"}]
        }
    },
    matches({"proj": "linear"}, {"proj": None}, {"proj": "none"}, {"proj": ["linear", "auto", 7, {"betas": [0.9, 1]}]}),
    matches({"proj": {"name": "linear", "out_dim": 7, "bias": False, "options": {"lr": 1}}}),
    matches({"proj": [["linear", False], 1, 2]}, {"proj": [{"name": "linear", "bias": False}, 1, 2]}),
    {"task": ["digits"], "output_dir": "x", "seed": 3, "plugins": {"require": ["pytest"]}},
]


@pytest.mark.parametrize("change", RIGHT)
def test_a_right_recipe_is_accepted_by_both(validator, recipe, change):
    data = changed(recipe, **change)
    assert (places(validator, data), refused(data)) == (set(), None)


_VALUES = st.sampled_from([-1, 0, 0.5, 1, 2.5, "x", None, {}, {"beta": 1}, {"gamma": 1}, {"gamma": -1}, {"eps": 0.5}])
_SETTINGS = st.dictionaries(st.sampled_from(["beta", "gamma", "eps", "zeta"]), _VALUES)
COMPONENTS = (
    st.lists(_VALUES, max_size=5).map(lambda values: ["flsw", *values])
    | _SETTINGS.map(lambda found: {"name": "flsw", **found})
    | st.tuples(st.lists(_VALUES, max_size=3), _SETTINGS).map(lambda parts: ["flsw", *parts[0], parts[1]])
)


def test_any_component_is_accepted_by_both_or_by_none(validator, recipe):
    @settings(deadline=None, max_examples=300)
    @given(COMPONENTS)
    def agree(component):
        data = changed(recipe, distillation={"temperature_scheduler": component})
        assert (places(validator, data) == set()) == (refused(data) is None), component

    agree()
