"""kdplug's engine, transformers' Trainer, Lightning and a loop by hand train the same student to the same weights."""

from __future__ import annotations

import loop_run
import pytest
import torch

import kdplug
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


@pytest.fixture(scope="module")
def by_hand():
    return loop_run.raw_loop(None)


def same(found, expected):
    losses, *weights = found
    assert len(losses) == len(expected[0]) == loop_run.STEPS
    torch.testing.assert_close(
        torch.tensor(losses, dtype=torch.float64), torch.tensor(expected[0], dtype=torch.float64), rtol=0, atol=1e-12
    )
    for mine, theirs in zip(weights, expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_training_changes_the_loss_the_student_and_the_projection(by_hand):
    losses, student, projection = by_hand
    assert losses[-1] < losses[0] - 0.5
    assert not torch.equal(student, loop_run.weights(loop_run.make_student()))
    assert not torch.equal(projection, loop_run.weights(loop_run.started(loop_run.Objective(loop_run.config()))))


@pytest.mark.parametrize("loop", [loop_run.engine, loop_run.trainer, loop_run.lightning])
def test_a_loop_trains_what_one_by_hand_does(tmp_path, by_hand, loop):
    same(loop(tmp_path), by_hand)


def head_gap(student_parameters, teacher_parameters):
    (ours,), (theirs,) = student_parameters.values(), teacher_parameters.values()
    return (ours - theirs).square().sum()


@pytest.fixture
def reading(monkeypatch):
    """The config of each loop, with a loss on the parameters of both classifiers."""
    terms = [*loop_run.config().resolved().to_dict()["terms"]]
    with isolated(scan()):
        kdplug.losses.register("head_gap")(head_gap)
        terms.append(
            {"loss": "head_gap", "reads_S": ["classifier:parameter.bias"], "reads_T": ["classifier:parameter.bias"]}
        )
        data = loop_run.config().resolved().to_dict() | {"terms": terms}
        monkeypatch.setattr(loop_run, "config", lambda: kdplug.DistillationConfig.from_dict(data))
        yield


@pytest.mark.parametrize("loop", [loop_run.engine, loop_run.trainer, loop_run.lightning])
def test_a_loss_on_parameters_is_the_same_in_every_loop(tmp_path, by_hand, reading, loop):
    expected = loop_run.raw_loop(None)
    assert not torch.equal(expected[1], by_hand[1])
    same(loop(tmp_path), expected)


@pytest.mark.parametrize("loop", [loop_run.engine, loop_run.trainer])
def test_cutting_batches_of_unequal_masks_changes_nothing(tmp_path, by_hand, loop):
    same(loop(tmp_path, cut=2), by_hand)
