"""Layer maps as a config writes them."""

from __future__ import annotations

import re

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import ConfigError, KdplugError, SettingError, SignatureError
from kdplug.host.registry import layer_maps


@pytest.fixture(autouse=True)
def maps(host):
    """Layer maps of this suite's own."""
    layer_maps.register("each")(lambda student_layers, teacher_layers: [(m, m) for m in range(1, student_layers + 1)])
    layer_maps.register("ends")(lambda student_layers, teacher_layers: [(0, 0), (student_layers, teacher_layers)])

    def shifted(student_layers, teacher_layers, *, by: int = 0):
        return [(1, 1 + by)]

    layer_maps.register("shifted")(shifted)


@pytest.fixture
def mapped():
    """The pairs that a map makes of a student with 2 layers and a teacher with 4."""

    def pairs(**keys):
        keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse", "layers_S": 2, "layers_T": 4, **keys}
        matches = DistillationConfig(kd_loss_weight=0, layer_map=keys).resolved().terms
        return [(match.layer_S, match.layer_T) for match in matches]

    return pairs


def test_hidden_states_begin_with_the_embeddings_so_layer_1_is_index_1(mapped):
    assert mapped() == [(1, 1), (2, 2)]
    assert mapped(name="ends") == [(0, 0), (2, 4)]


def test_without_embeddings_layer_1_is_index_0(mapped):
    assert mapped(embeddings=False) == [(0, 0), (1, 1)]


def test_attentions_have_no_embeddings(mapped):
    assert mapped(feature="attention") == [(0, 0), (1, 1)]


def test_a_map_has_settings_of_its_own(mapped):
    assert mapped(name={"name": "shifted", "by": 2}) == [(1, 3)]
    assert mapped(name=["shifted"]) == [(1, 1)]


def test_the_pairs_carry_all_that_the_map_says(match):
    keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse", "layers_S": 1, "layers_T": 1}
    rest = {"weight": 3.0, "weight_scheduler": "linear_decay", "proj": ["linear", "auto", "auto", {"lr": 0.1}]}
    found = DistillationConfig(layer_map={**keys, **rest, "teacher": 0}).resolved()
    written = DistillationConfig(
        intermediate_matches=[{**match, **rest, "layer_S": 1, "layer_T": 1, "teacher": 0}]
    ).resolved()
    assert found == written


def test_maps_come_after_the_matches_that_are_written_by_hand(match):
    keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse", "layers_S": 1, "layers_T": 1}
    config = DistillationConfig(intermediate_matches=[match], layer_map=[keys, {**keys, "feature": "attention"}])
    layers = [(m.layer_S, m.feature) for m in config.resolved().terms[1:]]
    assert layers == [(3, "hidden"), (1, "hidden"), (0, "attention")]


@pytest.mark.parametrize(
    "layer_map",
    [
        None,
        "none",
        [],
        {"name": "each", "feature": "hidden", "loss": "hidden_mse"},
        {
            "name": ["shifted", 1],
            "loss": {"name": "fsp"},
            "layer_S": "layer.*",
            "layer_T": ["emb", "layer.*:output[1]"],
        },
        [{"name": "each", "feature": "hidden", "loss": "hidden_mse", "layers_T": 3, "embeddings": True}] * 2,
    ],
)
def test_a_config_with_maps_round_trips(layer_map):
    config = DistillationConfig(layer_map=layer_map)
    assert DistillationConfig.from_dict(config.to_dict()) == config
    assert DistillationConfig.from_yaml(config.to_yaml()) == config
    assert DistillationConfig.from_json(config.to_json()) == config
    assert config.resolved().resolved() == config.resolved()


def test_a_map_whose_layers_are_not_counted_stays_when_resolved():
    keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse", "layers_T": 4}
    found = DistillationConfig(layer_map=keys).resolved()
    assert (found.layer_map[0].name.name, found.layer_map[0].loss.name) == ("local:each", "kdplug-presets:hidden_mse")
    assert found.intermediate_matches == ()


def test_a_map_alone_is_something_to_train():
    keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse"}
    assert DistillationConfig(kd_loss_weight=0, layer_map=keys).layer_map
    with pytest.raises(ConfigError, match="every term is disabled"):
        DistillationConfig(kd_loss_weight=0, layer_map={**keys, "weight": 0})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "eech"}, "layer_map.name: no layer map named 'eech'. Did you mean 'each'"),
        ({"nme": "each"}, "layer_map.nme: unknown key. Did you mean 'name'?"),
        ({"feature": "hiden"}, "layer_map.feature: must be 'hidden' or 'attention', got 'hiden'"),
        ({"layers_S": 0}, "layer_map.layers_S: must be >= 1, got 0"),
        ({"layers_S": 2, "layer_S": "a.*"}, "layer_map.layers_S: layer_S already determines"),
        ({"layer_S": 3}, "layer_map.layer_S: must be the path of a module, a glob, or a list of these, got 3"),
        (
            {"weight": 0, "weight_scheduler": "linear_decay"},
            "layer_map.weight: is 0, so weight_scheduler has no effect",
        ),
    ],
)
def test_what_is_wrong_with_a_map_is_named_with_its_path(keys, says):
    with pytest.raises(KdplugError, match=f"^{re.escape(says)}"):
        DistillationConfig(layer_map={"name": "each", "feature": "hidden", "loss": "hidden_mse", **keys})


def test_the_second_of_several_is_named_by_its_place():
    keys = {"name": "each", "feature": "hidden", "loss": "hidden_mse"}
    with pytest.raises(KdplugError, match=r"^layer_map\.1\.loss: no loss named 'hiden_mse'"):
        DistillationConfig(layer_map=[keys, {**keys, "loss": "hiden_mse"}])


def test_what_is_no_mapping_is_shown_how_to_write_it():
    with pytest.raises(ConfigError, match=r"^layer_map: must be a mapping such as \{name: uniform"):
        DistillationConfig(layer_map="each")


def test_an_index_on_either_side_needs_a_feature():
    with pytest.raises(
        ConfigError,
        match=r"^layer_map\.feature: is required \(hidden or attention\) unless both layer_S and layer_T are set$",
    ):
        DistillationConfig(layer_map={"name": "each", "loss": "hidden_mse", "layer_S": "a.*"})


def test_a_map_of_the_embeddings_needs_them(mapped):
    with pytest.raises(ConfigError, match=r"^layer_map\.name: local:ends matches layer 0.* the student's layers"):
        mapped(name="ends", feature="attention")


@pytest.mark.parametrize("found", [[], None, 3, [(1, 2, 3)], [(1, 9)], [(-1, 1)], [(1.0, 1)], [(True, 1)]])
def test_a_map_that_returns_no_pairs_of_layers_is_named(mapped, found):
    layer_maps.register("odd")(lambda student_layers, teacher_layers: found)
    with pytest.raises(SignatureError, match=r"^layer_map\.name: local:odd "):
        mapped(name="odd")


def test_a_wrong_setting_of_a_map_is_named_with_its_path(mapped):
    with pytest.raises(SettingError, match=r"^layer_map\.name\.by: must be a valid integer"):
        mapped(name=["shifted", "x"])
