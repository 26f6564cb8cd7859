"""The two configs, and the maps that their names are looked up in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kdplug
import kdplug.integrations.textbrewer as textbrewer
from kdplug.errors import ConfigError, EntryError, SettingError, UnknownKeyError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan

MATCH = {"layer_T": 1, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1}


def config(**options: Any) -> Any:
    return textbrewer.DistillationConfig(**options)


def test_defaults_are_those_of_textbrewer() -> None:
    written = vars(config())
    assert written.pop("intermediate_matches") == []
    assert written == {
        "temperature": 4,
        "temperature_scheduler": None,
        "hard_label_weight": 0,
        "hard_label_weight_scheduler": None,
        "kd_loss_type": "ce",
        "kd_loss_weight": 1,
        "kd_loss_weight_scheduler": None,
        "probability_shift": False,
        "is_caching_logits": False,
    }


def test_a_config_reads_from_json_with_none_in_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"temperature_scheduler": "none", "kd_loss_weight_scheduler": None, "temperature": 8}))
    read = textbrewer.DistillationConfig.from_json_file(path)
    assert (read.temperature, read.temperature_scheduler, read.kd_loss_weight_scheduler) == (8, None, None)
    assert "temperature : 8" in str(read)


def test_the_output_folder_is_made_at_once_and_the_device_is_one_that_is_there(tmp_path: Path) -> None:
    training = textbrewer.TrainingConfig(output_dir=tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    assert training.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_local_rank_without_a_process_group_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        textbrewer.TrainingConfig(local_rank=0, output_dir=tmp_path)


def test_the_callers_projection_list_stays_as_it_is() -> None:
    proj = ["linear", 3, 5]
    read = config(intermediate_matches=[{**MATCH, "proj": proj}]).intermediate_matches[0]
    assert (proj, read.proj) == (["linear", 3, 5], ["linear", 3, 5, {}])


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"temperature_scheduler": "flsw"}, SettingError, "temperature_scheduler.beta"),
        ({"temperature_scheduler": ["flws", 1, 1]}, EntryError, "temperature_scheduler"),
        ({"kd_loss_weight_scheduler": "decay"}, EntryError, "kd_loss_weight_scheduler"),
        ({"intermediate_matches": [{**MATCH, "feature": "hiden"}]}, ConfigError, "intermediate_matches.0.feature"),
        ({"intermediate_matches": [{**MATCH, "proj": ["linear", 3]}]}, ConfigError, "intermediate_matches.0.proj"),
        ({"intermediate_matches": [{**MATCH, "proj": ["liner", 3, 5]}]}, EntryError, "intermediate_matches.0.proj"),
        ({"intermediate_matches": [{**MATCH, "layer_T": "1"}]}, ConfigError, "intermediate_matches.0.layer_T"),
        ({"intermediate_matches": [{**MATCH, "layer_T": [1, 1]}]}, ConfigError, "intermediate_matches.0"),
        ({"intermediate_matches": [{**MATCH, "wieght": 1}]}, UnknownKeyError, "intermediate_matches.0.wieght"),
        ({"intermediate_matches": [{"layer_T": 1}]}, ConfigError, "intermediate_matches.0.layer_S"),
    ],
)
def test_what_a_config_cannot_mean_is_an_error_with_its_path(options: Any, error: type[Exception], field: str) -> None:
    with pytest.raises(error) as caught:
        config(**options)
    assert caught.value.field == field  # type: ignore[attr-defined]


def test_constant_is_read_in_every_spelling() -> None:
    for spec in ("constant", ["constant"], ("constant",)):
        assert config(temperature_scheduler=spec).temperature_scheduler(torch.ones(2, 3), torch.ones(2, 3), 5) == 5


@pytest.mark.parametrize("map_name", ["match_Loss", "match_loss"])
def test_what_a_script_registers_can_be_named(map_name: str) -> None:
    with isolated(scan()):
        textbrewer.register_new(map_name, "my_l1", lambda S, T, mask=None: (S - T).abs().mean())
        assert textbrewer.MATCH_LOSS_MAP["my_l1"](torch.ones(2), torch.zeros(2)) == 1
        assert kdplug.MATCH_LOSS_MAP is textbrewer.MATCH_LOSS_MAP


def test_registering_in_no_map_or_nothing_callable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'match_loss'"):
        textbrewer.register_new("match_los", "x", print)
    with pytest.raises(ConfigError, match="callable"):
        textbrewer.register_new("kd_loss", "x", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["PReLU", nn.PReLU, nn.PReLU()])
def test_each_projection_has_an_activation_of_its_own(activation: Any) -> None:
    make = textbrewer.projections.projection_with_activation(activation)
    first, second = make(3, 5), make(3, 5)
    assert first(torch.ones(2, 3)).shape == (2, 5)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


def test_an_activation_that_torch_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ReLU6'"):
        textbrewer.projections.projection_with_activation("Relu6x")
