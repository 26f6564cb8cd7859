from __future__ import annotations

import re

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.config.model import read_component, write_component
from kdplug.errors import ConfigError, NotInstalledError, UnknownEntryError
from kdplug.host.active import isolated
from kdplug.host.registry import losses
from kdplug.host.spec import ComponentSpec


@pytest.mark.parametrize(
    "data",
    ["blend", ["blend", 1, 8], ["blend", {"beta": 8}], ["blend", 1, {"beta": [8]}], {"name": "blend", "alpha": 1}],
)
def test_each_spelling_is_written_back_as_it_came(data):
    config = DistillationConfig(kd_loss_type=data)
    assert config.to_dict()["kd_loss_type"] == data


def test_a_tuple_is_a_list():
    assert DistillationConfig(kd_loss_type=("blend", 1)) == DistillationConfig(kd_loss_type=["blend", 1])


@pytest.mark.parametrize(
    "spec",
    [
        ComponentSpec("blend", (1, 8)),
        ComponentSpec("blend", (), {"beta": 8}),
        ComponentSpec("blend", (1,), {"beta": 8}, "mapping"),
    ],
)
def test_a_spec_whose_form_does_not_fit_loses_nothing(spec):
    again = read_component(write_component(read_component(spec)))
    assert (again.args, again.settings) == (spec.args, spec.settings)


def test_settings_cannot_be_changed_after_construction():
    given = {"name": "blend", "alpha": [1]}
    config = DistillationConfig(kd_loss_type=given)
    given["alpha"].append(2)
    assert config.kd_loss_type.settings == {"alpha": (1,)}
    with pytest.raises(TypeError):
        config.kd_loss_type.settings["alpha"] = 2


def test_what_to_dict_gives_may_be_changed_without_changing_the_config():
    config = DistillationConfig(kd_loss_type={"name": "blend", "alpha": [1]})
    config.to_dict()["kd_loss_type"]["alpha"].append(2)
    assert config.to_dict()["kd_loss_type"]["alpha"] == [1]


@pytest.mark.parametrize("word", [None, "none", "None"])
@pytest.mark.parametrize("field", ["temperature_scheduler", "kd_loss_weight_scheduler", "hard_label_weight_scheduler"])
def test_null_and_none_both_mean_no_scheduler_and_are_written_as_none(field, word):
    config = DistillationConfig(**{field: word})
    assert getattr(config, field) is None
    assert config.to_dict()[field] == "none"


def test_an_unknown_name_is_named_with_its_path_and_the_nearest_entry(match):
    matches = [match, {**match, "loss": "hiden_mse"}]
    with pytest.raises(UnknownEntryError) as caught:
        DistillationConfig(intermediate_matches=matches)
    expected = "intermediate_matches.1.loss: no loss named 'hiden_mse'. Did you mean 'hidden_mse' (kdplug-presets 0.1.0)? To list all: kdplug plugins list --kind loss"
    assert str(caught.value) == expected


def test_a_name_of_a_package_that_is_not_installed_says_what_to_install():
    says = r"^kd_loss_type: 'mse' is not installed\. It is part of kdplug-presets: pip install kdplug-presets$"
    with isolated(), pytest.raises(NotInstalledError, match=says):
        DistillationConfig(kd_loss_type="mse")


def test_a_loss_that_was_registered_in_this_process_can_be_named():
    losses.register("my_loss")(lambda student_logits, teacher_logits: None)
    assert DistillationConfig(kd_loss_type="my_loss").kd_loss_type.name == "my_loss"


def test_construction_imports_no_entry():
    assert DistillationConfig(kd_loss_type="broken").kd_loss_type.name == "broken"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (5, "cannot read 5 as a component"),
        ([], "an empty list names no component"),
        ({"alpha": 1}, "a component needs a 'name'"),
        ("", "a component's name must be a non-empty string"),
        ([["blend"], 1], "a component's name must be a non-empty string"),
        (max, "a config holds plain data, got the callable"),
    ],
)
def test_what_is_no_component_is_refused(data, says):
    with pytest.raises(ConfigError, match=rf"^kd_loss_type: {re.escape(says)}"):
        DistillationConfig(kd_loss_type=data)


@pytest.mark.parametrize("data", [["blend", float("inf")], {"name": "blend", "alpha": object()}])
def test_a_setting_that_is_no_plain_data_is_refused(data):
    with pytest.raises(ConfigError, match=r"^kd_loss_type\.(0|alpha): "):
        DistillationConfig(kd_loss_type=data)
