"""Losses that draw at random: a seed of its own for each step, micro-batch, head and chunk, the same after a resume."""

from __future__ import annotations

import pytest
import torch
from factored_scene import Scene
from killer import Killed, Killer
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug import DistillationConfig, LossSum, Objective, losses

SEEN = []


def recorder(student_logits, teacher_logits, draw_seed) -> LossSum:
    SEEN.append(draw_seed)
    return LossSum((student_logits - teacher_logits).square().sum(), student_logits[..., 0].numel())


def of_features(student_features, teacher_features, draw_seed):
    SEEN.append(draw_seed)
    return student_features.square().mean() + teacher_features.square().mean()


@pytest.fixture(autouse=True)
def _entries():
    SEEN.clear()
    losses.register("recorder")(recorder)
    losses.register("of_features")(of_features)


def seeds(folder, *, accumulation=2, killed_at=None, resume=None, masked=False, normalization="global"):
    """The seeds of a run over 6 steps of ``accumulation`` micro-batches, in order."""
    SEEN.clear()
    student = make_student()
    mask = torch.tensor([1, 1, 0, 1])
    adaptor = (lambda batch, found: {"logits": found["logits"], "logits_mask": mask}) if masked else None
    distiller = make_distiller(
        folder,
        student,
        training={"gradient_accumulation_steps": accumulation, "ckpt_frequency": 1, "normalization": normalization},
        adaptors=(None, adaptor),
        kd_loss_type="recorder",
        options={"observers": [] if killed_at is None else [Killer(killed_at)]},
    )
    data = torch.cat(make_batches(6 * accumulation))
    distiller.train(sgd(student), torch.utils.data.DataLoader(data, batch_size=4), num_epochs=1, resume=resume)
    return list(SEEN)


@pytest.mark.parametrize("normalization", ["global", "micro_batch"])
def test_each_micro_batch_of_each_step_has_its_own(tmp_path, normalization):
    found = seeds(tmp_path, accumulation=3, normalization=normalization)
    assert len(found) == len(set(found)) == 18


def test_the_pass_that_counts_draws_what_the_next_one_draws(tmp_path, monkeypatch):
    from kdplug.engine import accumulation

    monkeypatch.setattr(accumulation, "same_shapes", lambda window: False)  # counts could differ, so a pass learns them
    found = seeds(tmp_path, masked=True)
    assert len(found) == 24
    for start in range(0, 24, 4):
        assert found[start : start + 2] == found[start + 2 : start + 4]
    assert len(set(found)) == 12


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_run_that_was_killed_and_resumed_draws_the_same(tmp_path, killed_at):
    whole = seeds(tmp_path / "whole")
    with pytest.raises(Killed):
        seeds(tmp_path / "killed", killed_at=killed_at)
    before = list(SEEN)
    after = seeds(tmp_path / "killed", resume="auto")
    assert set(before + after) == set(whole)
    assert after == whole[len(whole) - len(after) :]


@pytest.mark.parametrize("chunk", [1, 5, "whole"])
def test_each_chunk_has_its_own_whatever_its_length(chunk):
    Scene().run(kd_loss_type="recorder", logit_chunk=chunk)
    expected = {1: 12, 5: 3, "whole": 1}[chunk]
    assert len(SEEN) == len(set(SEEN)) == expected


def test_heads_and_matches_have_their_own():
    match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "of_features"}
    objective = Objective(DistillationConfig(kd_loss_type="recorder", intermediate_matches=[match, match]))
    outputs = {"logits": [torch.randn(3, 4), torch.randn(3, 5)], "hidden": [torch.randn(3, 2)]}
    objective(outputs, outputs, step=3, micro_batch=1)
    assert len(SEEN) == len(set(SEEN)) == 4
    first = list(SEEN)
    objective(outputs, outputs, step=3, micro_batch=1)
    assert SEEN[4:] == first
    for other in ({"step": 4, "micro_batch": 1}, {"step": 3, "micro_batch": 0}):
        SEEN.clear()
        objective(outputs, outputs, **other)
        assert not set(SEEN) & set(first)


def test_matches_of_several_teachers_have_their_own():
    matches = [
        {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "of_features", "teacher": place} for place in (0, 1)
    ]
    objective = Objective(DistillationConfig(kd_loss_weight=0, intermediate_matches=matches), teachers=2)
    outputs = {"hidden": [torch.randn(3, 2)]}
    objective(outputs, [outputs, outputs])
    assert len(set(SEEN)) == 2


def test_a_loop_that_does_not_number_its_micro_batches_gets_the_calls_of_a_step_numbered():
    objective = Objective(DistillationConfig(kd_loss_type="recorder"))
    logits = torch.randn(3, 4)
    for step in (0, 0, 0, 1, 1):
        objective(logits, logits, step=step)
    assert len(set(SEEN)) == 5
    numbered = []
    for step, micro_batch in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        objective(logits, logits, step=step, micro_batch=micro_batch)
        numbered.append(SEEN[-1])
    assert SEEN[:5] == numbered


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
