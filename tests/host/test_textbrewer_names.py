"""TextBrewer's names with the installed presets, and names of one's own in a config, end to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import kdplug
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


@pytest.fixture(autouse=True)
def presets() -> Iterator[None]:
    """The real presets, and a place of this test's own for local names."""
    with isolated([dist for dist in scan() if dist.name == "kdplug-presets"]) as host:
        if not host.dists:
            pytest.skip("kdplug-presets is not installed")
        yield


def test_the_names_are_textbrewers() -> None:
    assert list(kdplug.KD_LOSS_MAP) == ["ce", "mse"]
    assert list(kdplug.MATCH_LOSS_MAP) == [
        "attention_ce", "attention_ce_mean", "attention_mse", "attention_mse_sum", "cos", "fsp", "gram", "hidden_mse",
        "mmd", "nst", "pkd",
    ]  # fmt: skip
    assert list(kdplug.PROJ_MAP) == ["linear", "relu", "tanh"]
    assert list(kdplug.WEIGHT_SCHEDULER) == ["linear_decay", "linear_growth", "linear_warmup"]
    assert list(kdplug.TEMPERATURE_SCHEDULER) == ["constant", "cwsm", "flsw"]
    assert kdplug.ADAPTOR_KEYS == ("logits", "logits_mask", "losses", "inputs_mask", "labels", "hidden", "attention")


@pytest.mark.parametrize("name", ["ce", "mse"])
def test_kd_losses_take_a_temperature_by_position_or_by_name(name: str) -> None:
    student, teacher = torch.randn(2, 5, 7)
    loss = kdplug.KD_LOSS_MAP[name]
    assert loss(student, teacher).dim() == 0
    assert torch.equal(loss(student, teacher, 2.0), loss(student, teacher, temperature=2.0))


@pytest.mark.parametrize("name", ["attention_ce", "attention_mse_sum", "hidden_mse", "cos", "fsp", "nst"])
def test_match_losses_take_a_mask_by_position_or_by_name(name: str) -> None:
    shape = (2, 3, 4, 4) if name.startswith("attention") else (2, 4, 6)
    student, teacher = torch.randn(2, *shape)
    given = ([student] * 2, [teacher] * 2) if name in ("fsp", "nst") else (student, teacher)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    loss = kdplug.MATCH_LOSS_MAP[name]
    assert loss(*given).dim() == 0
    assert torch.equal(loss(*given, mask), loss(*given, mask=mask))


def test_projections_and_weight_schedulers() -> None:
    assert kdplug.PROJ_MAP["linear"](3, 5)(torch.zeros(2, 3)).shape == (2, 5)
    assert [kdplug.WEIGHT_SCHEDULER[name](0.25) for name in ("linear_decay", "linear_growth")] == [0.75, 0.25]


def test_temperature_schedulers_are_built_as_in_textbrewer() -> None:
    student, teacher = torch.randn(2, 5, 7)
    assert kdplug.TEMPERATURE_SCHEDULER["constant"](student, teacher, 4) == 4
    built = kdplug.TEMPERATURE_SCHEDULER["flsw"](1, 2)(student, teacher, 4.0)
    assert built.shape == (5,)
    assert torch.equal(built, kdplug.TEMPERATURE_SCHEDULER[["flsw", 1, 2]](student, teacher, 4.0))
    assert kdplug.TEMPERATURE_SCHEDULER[["cwsm", 1]](student, teacher, 4.0).shape == (5,)


def test_what_is_put_in_the_maps_works_from_a_config() -> None:
    def my_l1_loss(feature_S: torch.Tensor, feature_T: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return (feature_S - feature_T).abs().mean()

    kdplug.MATCH_LOSS_MAP["my_L1_loss"] = my_l1_loss
    kdplug.KD_LOSS_MAP["my_kd"] = lambda logits_S, logits_T, temperature: ((logits_S - logits_T) / temperature).sum()
    kdplug.PROJ_MAP["my_proj"] = torch.nn.Linear
    kdplug.WEIGHT_SCHEDULER["my_weight_scheduler"] = lambda x: 1 - x**2
    kdplug.TEMPERATURE_SCHEDULER["my_temperature"] = lambda logits_S, logits_T, base: base * 2
    match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "my_L1_loss", "proj": ["my_proj", 3, 5]}
    config = kdplug.DistillationConfig(
        temperature=2,
        temperature_scheduler="my_temperature",
        kd_loss_type="my_kd",
        kd_loss_weight_scheduler="my_weight_scheduler",
        intermediate_matches=[match],
    )
    student = {"logits": torch.ones(2, 7), "hidden": [torch.ones(2, 4, 3)]}
    teacher = {"logits": torch.zeros(2, 7), "hidden": [torch.ones(2, 4, 5)]}
    report = kdplug.Objective(config)(student=student, teacher=teacher, progress=0.5)
    assert report.terms["kd_loss"].value == 14 / 4
    assert report.terms["kd_loss"].weight == 0.75
    assert report.terms["hidden_my_L1_loss_0_0"].value > 0
