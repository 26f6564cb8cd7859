"""``ema``: the moving average of the student's parameters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdplug
from kdplug import SettingError
from kdplug.testing import TeacherUpdateLaws
from kdplug_presets.teacher_update import ema

TENSORS = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(7)]


def mean_teacher(weights: list[list[float]], decay: float) -> list[float]:
    """``update_ema_variables`` of the authors' code: alpha = min(1 - 1 / (global_step + 1), alpha), in plain Python."""
    found = weights[0]
    for global_step, student in enumerate(weights[1:], 1):
        alpha = min(1 - 1 / (global_step + 1), decay)
        found = [alpha * old + (1 - alpha) * new for old, new in zip(found, student, strict=True)]
    return found


@given(decay=st.floats(0, 1))
def test_it_is_the_rule_of_mean_teacher(decay: float) -> None:
    found = TENSORS[0]
    for step, student in enumerate(TENSORS[1:], 1):
        found = ema(found, student, step / 6, step, decay=decay)
    expected = mean_teacher([one.flatten().tolist() for one in TENSORS], decay)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_warm_up_gives_the_mean_of_the_start_and_all_students() -> None:
    found = TENSORS[0]
    for step, student in enumerate(TENSORS[1:], 1):
        found = ema(found, student, 0.0, step, decay=1.0)
    torch.testing.assert_close(found, torch.stack(TENSORS).mean(0), rtol=1e-12, atol=1e-12)


@given(progress=st.floats(0, 1), decay=st.floats(0, 1))
def test_a_final_decay_follows_the_cosine_of_byol(progress: float, decay: float) -> None:
    tau = 1 - (1 - decay) * (math.cos(math.pi * progress) + 1) / 2
    found = ema(TENSORS[0], TENSORS[1], progress, 5, decay=decay, final_decay=1.0, warm_up=False)
    torch.testing.assert_close(found, tau * TENSORS[0] + (1 - tau) * TENSORS[1], rtol=1e-12, atol=1e-12)


def test_neither_tensor_is_changed_and_the_precision_is_the_teachers() -> None:
    teacher, student = (one.to(torch.bfloat16) for one in TENSORS[:2])
    kept = teacher.clone(), student.clone()
    found = ema(teacher, student, 0.5, 10)
    assert found.dtype is torch.bfloat16
    assert torch.equal(teacher, kept[0])
    assert torch.equal(student, kept[1])


@pytest.mark.parametrize("settings", [{"decay": 1.5}, {"decay": -0.1}, {"final_decay": 2.0}, {"decay": float("nan")}])
def test_a_decay_out_of_range_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="decay"):
        kdplug.teacher_updates.build({"name": "ema", **settings})


class TestEma(TeacherUpdateLaws):
    entry = "kdplug-presets:ema"


def test_every_first_party_entry_is_under_laws() -> None:
    offered = {entry.qualified for entry in kdplug.teacher_updates.entries() if entry.dist == "kdplug-presets"}
    assert offered == {TestEma.entry}
