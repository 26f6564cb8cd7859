from __future__ import annotations

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import BrokenEntryError, SettingError, UnknownKeyError
from kdplug.host.registry import temperature_schedulers


@pytest.fixture
def resolved(match):
    """A config with a component of every kind, resolved."""
    return DistillationConfig(
        temperature_scheduler=["flsw", 1, 2],
        kd_loss_type={"name": "blend", "beta": 2},
        kd_loss_weight_scheduler="linear_decay",
        intermediate_matches=[
            {**match, "weight_scheduler": ["linear_growth", 2], "proj": ["linear", 3, 5, {"lr": 0.1}]}
        ],
    ).resolved()


def test_it_holds_qualified_names_and_every_default(resolved, match):
    data = resolved.to_dict()
    assert data["temperature_scheduler"] == {"name": "kdplug-presets:flsw", "beta": 1, "gamma": 2, "eps": 1e-4}
    kd, found = data["terms"]
    assert (kd["name"], kd["temperature"]) == ("kd_loss", 4)
    assert kd["loss"] == {"name": "kdplug-presets:blend", "alpha": 1, "beta": 2}
    assert kd["weight_scheduler"] == {"name": "kdplug-presets:linear_decay", "power": 1}
    assert kd["temperature_scheduler"] == data["temperature_scheduler"]
    assert not {"kd_loss_type", "kd_loss_weight", "kd_loss_weight_scheduler"} & data.keys()
    assert found["loss"] == {"name": "kdplug-presets:hidden_mse"}
    assert found["weight_scheduler"] == {"name": "kdplug-presets:linear_growth", "power": 2}
    assert found["proj"] == [{"name": "kdplug-presets:linear", "bias": True}, 3, 5, {"lr": 0.1}]


def test_resolving_twice_changes_nothing(resolved):
    assert resolved.resolved() == resolved


def test_a_resolved_config_round_trips(resolved):
    assert DistillationConfig.from_yaml(resolved.to_yaml()) == resolved
    assert DistillationConfig.from_json(resolved.to_json()) == resolved


def test_nothing_else_changes(match):
    config = DistillationConfig(temperature=2, intermediate_matches=[{**match, "name": "first", "weight": 3}])
    found = config.resolved()
    assert (found.temperature, found.terms[1].name, found.terms[1].weight) == (2, "first", 3)


def test_a_setting_out_of_bounds_is_named_with_its_path_and_place():
    with pytest.raises(SettingError) as caught:
        DistillationConfig(temperature_scheduler=["flsw", 1, -1]).resolved()
    expected = "temperature_scheduler.gamma: must be >= 0, got -1   (['flsw', 1, -1]: the 2nd setting is 'gamma')"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("weight_scheduler", {"name": "linear_decay", "power": 0}, "weight_scheduler.power"),
        ("proj", [["linear", "x"], 3, 5], "proj.bias"),
    ],
)
def test_a_wrong_setting_in_a_match_is_named_with_the_whole_path(match, key, value, path):
    config = DistillationConfig(intermediate_matches=[match, {**match, key: value}])
    with pytest.raises(SettingError) as caught:
        config.resolved()
    assert caught.value.field == f"intermediate_matches.1.{path}"


def test_an_unknown_setting_is_named_with_the_path_of_the_component():
    with pytest.raises(UnknownKeyError, match=r"^kd_loss_type: .* has no setting 'alhpa'\. Did you mean 'alpha'\?"):
        DistillationConfig(kd_loss_type={"name": "blend", "alhpa": 1}).resolved()


def test_a_broken_entry_is_named_with_its_path_and_keeps_its_cause():
    with pytest.raises(
        BrokenEntryError, match=r"^kd_loss_type: 'kdplug-presets:broken' is installed but failed"
    ) as caught:
        DistillationConfig(kd_loss_type="broken").resolved()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_the_arguments_of_a_callable_that_is_called_by_position_stay_as_they_are(host):
    def builder(beta):
        return lambda student, teacher, temperature: temperature * beta

    host.put(temperature_schedulers.kind, "mine", builder, positional=True, slot=None)
    config = DistillationConfig(temperature_scheduler=["mine", 2]).resolved()
    assert config.to_dict()["temperature_scheduler"] == ["local:mine", 2]
