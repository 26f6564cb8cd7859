"""The entries that a resolved config uses."""

from __future__ import annotations

import pytest

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.report.record import used_entries

pytestmark = pytest.mark.usefixtures("no_plugins")


def paths(**keys) -> dict[str, str]:
    @kdplug.losses.register("on_logits")
    def on_logits(student_logits, *, alpha=0.5): ...

    @kdplug.losses.register("on_features")
    def on_features(student_features): ...

    @kdplug.weight_schedulers.register("falling")
    def falling(progress): ...

    @kdplug.projections.register("wide")
    def wide(in_dim, out_dim, *, bias: bool = True): ...

    @kdplug.layer_maps.register("last")
    def last(student_layers, teacher_layers): ...

    config = DistillationConfig(kd_loss_type="on_logits", **keys).resolved()
    return {entry["path"]: entry for entry in used_entries(config)}


MATCH = {"feature": "hidden", "loss": "on_features", "weight_scheduler": "falling", "proj": "wide"}


def test_each_component_of_a_config_is_named_with_its_place_and_every_setting() -> None:
    found = paths(intermediate_matches=[{"layer_T": 0, "layer_S": 0, **MATCH}])
    assert found["terms.0.loss"] == {"path": "terms.0.loss", "name": "local:on_logits", "settings": {"alpha": 0.5}}
    assert found["terms.1.proj"]["settings"] == {"bias": True}
    assert set(found) == {"terms.0.loss"} | {f"terms.1.{key}" for key in ("loss", "weight_scheduler", "proj")}


def test_a_layer_map_whose_layers_are_not_counted_yet_is_named_too() -> None:
    found = paths(layer_map={"name": "last", **MATCH})
    assert {path: found[path]["name"] for path in found if path.startswith("layer_map")} == {
        "layer_map.name": "local:last",
        "layer_map.loss": "local:on_features",
        "layer_map.weight_scheduler": "local:falling",
        "layer_map.proj": "local:wide",
    }


def test_a_kd_loss_of_weight_0_is_not_used() -> None:
    found = paths(kd_loss_weight=0, intermediate_matches=[{"layer_T": 0, "layer_S": 0, **MATCH}])
    assert found["terms.0.loss"]["name"] == "local:on_features"
    assert "kd_loss_type" not in found
