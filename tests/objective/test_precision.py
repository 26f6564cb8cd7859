"""Losses run in float32 at least, whatever autocast and the models say."""

from __future__ import annotations

import pytest
import torch

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def seen(offer):
    """The dtypes that an offered match loss was called with, and whether autocast was on."""
    calls = []

    def loss(student_features, teacher_features):
        calls.append((student_features.dtype, teacher_features.dtype, torch.is_autocast_enabled("cpu")))
        return (student_features @ teacher_features.mT).mean()

    offer(loss)
    return calls


def cast(side, dtype):
    return {key: [tensor.detach().to(dtype) for tensor in side[key]] for key in ("hidden",)} | {
        "logits": side["logits"].detach().to(dtype)
    }


@pytest.mark.parametrize("dtype", HALF)
def test_half_features_reach_a_loss_in_float32(build, match, seen, student, teacher, dtype):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(loss="offered")])
    report = objective(cast(student, dtype), cast(teacher, dtype))
    assert seen == [(torch.float32, torch.float32, False)]
    assert report.total.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_features_reach_a_loss_as_they_are(build, match, seen, student, teacher, dtype):
    build(kd_loss_weight=0, intermediate_matches=[match(loss="offered")])(cast(student, dtype), cast(teacher, dtype))
    assert seen == [(dtype, dtype, False)]


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_is_off_inside_a_loss_and_on_again_outside(build, match, seen, student, teacher, dtype):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(loss="offered")])
    with torch.autocast("cpu", dtype=dtype):
        total = objective(cast(student, torch.float32), cast(teacher, torch.float32)).total
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(torch.float32, torch.float32, False)]
    assert total.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_a_projection_runs_under_the_ambient_autocast(build, match, seen, student, teacher, dtype):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(loss="offered", proj=["linear", 6, 6])])
    kinds = []
    next(objective.configured.groups())[0].register_forward_hook(
        lambda module, inputs, output: kinds.append(output.dtype)
    )
    with torch.autocast("cpu", dtype=dtype):
        objective(cast(student, torch.float32), cast(teacher, torch.float32))
    assert (kinds, seen[0][0]) == ([dtype], torch.float32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("own", [torch.float32, None])
def test_a_half_feature_takes_on_the_projections_dtype_without_autocast(build, match, student, teacher, dtype, own):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(proj=["linear", 6, 6])]).to(own or dtype)
    assert objective(cast(student, dtype), cast(teacher, dtype)).total.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_half_logits_give_nearly_the_loss_of_full_ones(build, match, student, teacher, dtype):
    objective = build(intermediate_matches=[match(), match(loss="masked_mse", layer_S=1)])
    expected = objective(cast(student, torch.float32), cast(teacher, torch.float32)).total
    torch.testing.assert_close(objective(cast(student, dtype), cast(teacher, dtype)).total, expected, rtol=1e-2, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        same = objective(cast(student, torch.float32), cast(teacher, torch.float32)).total
    assert same == expected


def test_a_count_that_no_half_can_hold_stays_exact(build, match):
    features = {"hidden": torch.ones(8, 128, 768, dtype=torch.float16), "inputs_mask": torch.ones(8, 128)}
    with torch.autocast("cpu", dtype=torch.float16):
        report = build(kd_loss_weight=0, intermediate_matches=[match(loss="masked_mse")])(
            features, {"hidden": features["hidden"] * 3}
        )
    assert report.total == 4


def test_half_losses_of_the_student_are_averaged_in_float32(build):
    losses = torch.tensor([1, 1 + 2**-10], dtype=torch.float16)
    assert build(kd_loss_weight=0, hard_label_weight=1)({"losses": losses}).total.item() == 1 + 2**-11


@pytest.mark.parametrize("dtype", HALF)
def test_a_kd_loss_and_its_temperature_run_without_autocast_too(build, offer, student, teacher, dtype):
    def product(student_logits, teacher_logits, temperature):
        return (student_logits @ teacher_logits.mT).mean() * temperature.mean()

    cool = offer(
        lambda student_logits: (student_logits @ student_logits.mT)[..., 0].abs() + 1, "temperature_schedulers"
    )
    objective = build(kd_loss_type=offer(product), temperature_scheduler=cool)
    outputs = cast(student, torch.float32), cast(teacher, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        found = objective(*outputs).total
    assert found == objective(*outputs).total


def test_meta_tensors_pass_through(build, match):
    logits, hidden = torch.empty(3, 4, 5, device="meta"), torch.empty(3, 4, 6, device="meta")
    outputs = {"logits": logits, "hidden": hidden}
    assert build(intermediate_matches=[match()])(outputs, outputs).total.is_meta
