"""The objective as an ``nn.Module``: saved, copied, moved, and built from wrong names."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from kdplug import KdplugError, SignatureError


@pytest.fixture
def objective(build, match):
    matches = [match(weight=0), match(proj=["linear", 6, 6]), match(loss=["scaled", 2.0], name="mine")]
    return build(kd_loss_weight_scheduler="growth", intermediate_matches=matches).double()


def test_the_state_is_keyed_by_the_place_in_the_config(objective):
    keys = [
        "configured.2.features.projection.weight",
        "configured.2.features.projection.bias",
        "configured.3.loss.scale",
        "configured.3.loss.calls",
    ]
    assert list(objective.state_dict()) == keys


def test_the_state_goes_round(objective, build, student, teacher):
    other = type(objective)(objective.config).double()
    assert other(student, teacher).total != objective(student, teacher).total
    other.load_state_dict(objective.state_dict())
    assert other(student, teacher).total == objective(student, teacher).total


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_gives_the_same_and_shares_nothing(objective, student, teacher, clone):
    expected = objective(student, teacher, progress=0.5).total
    twin = clone(objective)
    assert twin(student, teacher, progress=0.5).total == expected
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(student, teacher, progress=0.5).total != expected
    assert objective(student, teacher, progress=0.5).total == expected


def test_what_is_not_made_yet_can_be_copied_too(build, match, student, teacher):
    twin = copy.deepcopy(build(intermediate_matches=[match(proj="linear")]))
    twin.materialize(student, teacher)
    assert twin(student, teacher).total.isfinite()


def test_it_moves_like_any_module(objective, student, teacher):
    moved = objective.float()
    assert {p.dtype for p in moved.parameters()} == {torch.float32}
    mine, theirs = (
        {"logits": s["logits"].float(), "hidden": [h.float() for h in s["hidden"]]} for s in (student, teacher)
    )
    assert moved(mine, theirs).total.dtype == torch.float32


def test_hooks_run(objective, student, teacher):
    called = []
    objective.register_forward_hook(lambda module, inputs, report: called.append(report.total))
    assert called == [objective(student, teacher).total]


def test_modes_reach_what_it_holds(build, match, offer, student, teacher):
    name = offer(lambda in_dim, out_dim: nn.Sequential(nn.Linear(in_dim, out_dim), nn.Dropout(0.5)), "projections")
    objective = build(kd_loss_weight=0, intermediate_matches=[match(proj=[name, 6, 6])]).double().eval()
    assert objective(student, teacher).total == objective(student, teacher).total


def test_it_shows_its_terms(objective):
    assert "kd_loss: 1, hidden_plain_mse_0_0_2: 1, mine: 1" in repr(objective)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kd_loss_type": "match_only"}, r"^kd_loss_type: .*requests input 'student_features'"),
        ({"kd_loss_type": ["ce", 1]}, r"^kd_loss_type: "),
        ({"intermediate_matches": [{"loss": "ce"}]}, r"^intermediate_matches\.0\.loss: .* requests no feature"),
        ({"intermediate_matches": [{"loss": ["scaled", "x"]}]}, r"^intermediate_matches\.0\.loss\.start: "),
        (
            {"intermediate_matches": [{"weight_scheduler": ["growth", 1]}]},
            r"^intermediate_matches\.0\.weight_scheduler: ",
        ),
        ({"kd_loss_weight_scheduler": ["growth", 1]}, "^kd_loss_weight_scheduler: "),
        ({"hard_label_weight_scheduler": ["growth", 1]}, "^hard_label_weight_scheduler: "),
        ({"temperature_scheduler": ["cool", 1]}, "^temperature_scheduler: "),
        ({"intermediate_matches": [{"proj": {"name": "linear", "x": 1}}]}, r"^intermediate_matches\.0\.proj"),
    ],
)
def test_what_cannot_be_built_is_named_by_its_field(build, match, offer, keys, message):
    offer(lambda student_features: None, name="match_only")
    offer(lambda temperature: temperature, "temperature_schedulers", "cool")
    if "intermediate_matches" in keys:
        keys = {"intermediate_matches": [match(**keys["intermediate_matches"][0])]}
    with pytest.raises(KdplugError, match=message):
        build(**keys)


def test_an_input_that_the_place_does_not_get_is_an_error_before_any_batch(build, match):
    with pytest.raises(SignatureError, match="Use it in a kd loss"):
        build(intermediate_matches=[match(loss="ce")])


def test_a_signature_is_read_once_and_not_per_step(build, student, teacher, monkeypatch):
    import inspect

    objective = build()
    monkeypatch.setattr(inspect, "signature", None)
    assert objective(student, teacher).total.isfinite()
