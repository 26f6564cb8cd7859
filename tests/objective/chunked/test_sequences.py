"""Chunks of a loss that declares ``whole_sequences`` hold whole sequences."""

from __future__ import annotations

import pytest
import torch
from factored_scene import CLASSES, Scene, assert_same
from sequence_losses import policy, slopes
from torch import nn

import kdplug
from kdplug import ConfigError, DistillationConfig, LossSum, Objective, OutputsError, SparseLogits

ITEMS = (5, 4)
SIDES = [("student", "teacher"), ("student",), ("teacher",)]
MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
LABELS = torch.arange(20).view(ITEMS) % CLASSES


def squared(student_logits, teacher_logits):
    """The squared length of each sequence's summed difference."""
    return (student_logits - teacher_logits).sum(1).square().sum(-1)


@kdplug.mean_over_items
@kdplug.whole_sequences
def mean_of_sequences(student_logits, teacher_logits):
    return squared(student_logits, teacher_logits).mean()


@kdplug.sum_over_items
@kdplug.whole_sequences
def sum_of_sequences(student_logits, teacher_logits):
    return squared(student_logits, teacher_logits).sum()


class Learned(nn.Module):
    whole_sequences = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits, mask) -> LossSum:
        return slopes(self.scale * student_logits, teacher_logits, mask)


def outputs(*, masked):
    return {"labels": LABELS, **({"logits_mask": MASK} if masked else {})}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("target", [slopes, policy, mean_of_sequences, sum_of_sequences])
@pytest.mark.parametrize("factored", SIDES)
@pytest.mark.parametrize("chunk", [1, 5, 8, 13])
def test_chunks_give_the_same_as_full_logits(offer, target, factored, chunk, masked):
    scene, keys = Scene(items=ITEMS), {"kd_loss_type": offer(target), "outputs": outputs(masked=masked)}
    expected = scene.run(factored=(), **keys)
    assert expected[0] != 0
    assert_same(scene.run(factored=factored, logit_chunk=chunk, **keys), expected)


@pytest.mark.parametrize(("chunk", "shapes"), [(1, [1] * 5), (4, [1] * 5), (10, [2, 2, 1]), (20, [5]), ("whole", [5])])
def test_no_sequence_is_divided(offer, chunk, shapes):
    seen = []

    @kdplug.whole_sequences
    def recorded(student_logits, teacher_logits, mask) -> LossSum:
        seen.append(student_logits.shape)
        return slopes(student_logits, teacher_logits, mask)

    Scene(items=ITEMS).run(kd_loss_type=offer(recorded), logit_chunk=chunk, outputs=outputs(masked=True))
    assert seen == [(rows, ITEMS[1], CLASSES) for rows in shapes]


@pytest.mark.parametrize("factored", SIDES)
@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
def test_what_masked_hidden_states_hold_changes_nothing(offer, factored, filling):
    scene, keys = Scene(items=ITEMS), {"kd_loss_type": offer(policy), "logit_chunk": 5}
    keys["outputs"] = outputs(masked=True)
    expected = scene.run(factored=factored, **keys)
    with torch.no_grad():
        scene.student[0][~MASK.bool()] = filling
    found = scene.run(factored=factored, **keys)
    assert torch.equal(found[0], expected[0])
    if "student" in factored:  # otherwise the test's own multiplication spreads nan to the weight
        for one, other in zip(found[1], expected[1], strict=True):
            assert torch.equal(one, other)
    assert not found[1][0][~MASK.bool()].any()


def test_a_loss_that_learns_gets_its_gradient(offer):
    scene, found, mask = Scene(items=ITEMS), [], {"logits_mask": MASK}
    for factored in (False, True):
        objective = Objective(DistillationConfig(kd_loss_type=offer(Learned), logit_chunk=5))
        sides = [scene.logits(side, factored=factored) for side in ("student", "teacher")]
        objective({"logits": sides[0], **mask}, sides[1]).total.backward()
        found.append(objective.configured["0"].loss.scale.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=0)


def test_a_sparse_teacher_is_compared_in_chunks_too(offer):
    @kdplug.coarsens
    @kdplug.whole_sequences
    def coarse(student_logits, teacher_logits, mask) -> LossSum:
        own, theirs = (side.log_softmax(-1) for side in (student_logits, teacher_logits))
        return slopes(own, theirs, mask)

    scene = Scene(items=ITEMS)
    keys = {"kd_loss_type": offer(coarse), "temperature": 1.0, "outputs": outputs(masked=True)}
    keys["teacher"] = SparseLogits.top(scene.logits("teacher", factored=False), 4, 1.0)
    assert_same(scene.run(factored=("student",), logit_chunk=5, **keys), scene.run(factored=(), **keys))


def test_the_items_of_a_declared_mean_are_sequences_and_count_where_nothing_is_selected(offer):
    scene = Scene(items=ITEMS)
    keys = {"kd_loss_type": offer(mean_of_sequences), "outputs": outputs(masked=True)}
    total = scene.run(factored=("student", "teacher"), logit_chunk=5, **keys)[0]
    own, theirs = (scene.logits(side, factored=False).detach() for side in ("student", "teacher"))
    kept = MASK.bool().unsqueeze(-1)
    expected = squared(own.masked_fill(~kept, 0.0), theirs.masked_fill(~kept, 0.0)).sum() / len(MASK)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


def test_an_undeclared_scalar_runs_on_all_sequences_at_once(offer, monkeypatch):
    @kdplug.whole_sequences
    def worst(student_logits, teacher_logits):
        return squared(student_logits, teacher_logits).max()

    from kdplug.objective.chunked import factored_kd

    monkeypatch.setattr(factored_kd, "chunk_length", lambda *_: 5)
    scene, keys = Scene(items=ITEMS), {"kd_loss_type": offer(worst), "outputs": outputs(masked=True)}
    priced = rf"declares no reduction.* all 20 items at once.*: 20 × {CLASSES} × 8 bytes each"  # float64, all places
    with pytest.warns(UserWarning, match=priced):
        found = scene.run(**keys)
    assert_same(found, scene.run(factored=(), **keys))
    with pytest.raises(OutputsError, match=r"^logit_chunk: is 5, but local:offered declares no reduction"):
        scene.run(logit_chunk=5, **keys)


def test_a_temperature_schedule_needs_all_logits_at_once(offer):
    def ranked(student_logits, teacher_logits):
        return 1 + student_logits.amax(-1).sigmoid()

    @kdplug.whole_sequences
    def tempered(student_logits, teacher_logits, temperature, mask) -> LossSum:
        own, theirs = (side / temperature.unsqueeze(-1) for side in (student_logits, teacher_logits))
        return slopes(own, theirs, mask)

    keys = {"kd_loss_type": offer(tempered), "temperature_scheduler": offer(ranked, "temperature_schedulers")}
    keys["outputs"] = outputs(masked=True)
    scene = Scene(items=ITEMS)
    with pytest.raises(ConfigError, match="reads the logits of all 10 items at once"):
        scene.run(logit_chunk=5, **keys)
    assert_same(scene.run(logit_chunk="whole", **keys), scene.run(factored=(), **keys))


def test_a_shorter_chunk_before_a_longer_one_does_not_shrink_the_buffer(offer):
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    scene, keys = Scene(items=(2, 3)), {"kd_loss_type": offer(slopes), "outputs": {"logits_mask": mask}}
    assert_same(scene.run(logit_chunk=1, **keys), scene.run(factored=(), **keys))


@pytest.mark.parametrize("factored", ["", "student teacher"])
def test_a_sequence_has_one_id_also_in_chunks(offer, factored):
    seen = []

    @kdplug.whole_sequences
    def numbered(student_logits, teacher_logits, mask, example_ids) -> LossSum:
        assert len(example_ids) == len(student_logits)
        seen.extend(example_ids.tolist())
        values = (student_logits - teacher_logits).square().mean(-1).masked_fill(~mask, 0.0).sum(-1)
        return LossSum((values * example_ids).sum(), len(values))

    scene = Scene(items=ITEMS)
    objective = Objective(DistillationConfig(kd_loss_type=offer(numbered), logit_chunk=8))
    student, teacher = (scene.logits(side, factored=side in factored) for side in ("student", "teacher"))
    total = objective({"logits": student, "logits_mask": MASK}, teacher, example_ids=[7, 0, 3, 9, 1]).total
    dense = [scene.logits(side, factored=False) for side in ("student", "teacher")]
    values = (dense[0] - dense[1]).square().mean(-1).masked_fill(~MASK.bool(), 0.0).sum(-1)
    torch.testing.assert_close(total, (values * torch.tensor([7, 0, 3, 9, 1])).sum() / 5)
    assert seen == [7, 0, 3, 9, 1]
