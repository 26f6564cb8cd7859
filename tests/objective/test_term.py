"""Terms that train nothing are warned of in their first batches; batches with nothing to count are legal."""

from __future__ import annotations

import pytest
import torch

from kdplug import LossSum, OutputsError
from kdplug.contracts.outputs import is_valid_count
from kdplug.objective.objective import mark_trained

ZEROS = torch.zeros(3, 4)
"""An additive mask, 0 = keep, of a batch without padding."""
ADDITIVE = (
    r"is 0 everywhere, .* An additive attention mask, .* convert it with \(mask == 0\), or return the tokenizer's"
)


def calls(objective, student, teacher, count):
    return [objective(student, teacher).total.item() for _ in range(count)]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_kd_loss_that_counts_nothing_is_warned_of_once(build, student, teacher, side):
    objective = build(kd_loss_type="ce_sum")
    {"student": student, "teacher": teacher}[side]["logits_mask"] = ZEROS
    assert calls(objective, student, teacher, 2) == [0, 0]
    with pytest.warns(
        UserWarning, match=rf"^kd_loss has counted no items in its first 3 batches.*{side}'s logits_mask {ADDITIVE}"
    ):
        objective(student, teacher)
    assert calls(objective, student, teacher, 2) == [0, 0]


def test_a_match_that_counts_nothing_is_warned_of_once(build, match, student, teacher):
    objective = build(kd_loss_type="ce_sum", intermediate_matches=[match(loss="masked_mse", name="mine")])
    student["inputs_mask"] = ZEROS
    calls(objective, student, teacher, 2)
    with pytest.warns(
        UserWarning, match=rf"^mine has counted no items in its first 3 batches.*student's inputs_mask {ADDITIVE}"
    ):
        objective(student, teacher)
    calls(objective, student, teacher, 2)


def test_a_match_that_returns_a_scalar_of_nothing_is_warned_of(build, match, matches_only, offer, student, teacher):
    def scalar(student_features, teacher_features, mask):
        error = (student_features - teacher_features).square() * mask.unsqueeze(-1)
        return error.sum() / mask.sum().clamp(min=1)

    objective = build(**matches_only, intermediate_matches=[match(loss=offer(scalar)), match()])
    student["inputs_mask"] = ZEROS
    calls(objective, student, teacher, 2)
    with pytest.warns(
        UserWarning, match=rf"^hidden_offered_0_0 has counted no items .*student's inputs_mask {ADDITIVE}"
    ):
        objective(student, teacher)


def test_masks_that_have_nothing_in_common_are_distinguished_from_additive_ones(
    build, match, matches_only, student, teacher, mask
):
    objective = build(**matches_only, intermediate_matches=[match(loss="masked_mse")])
    student["inputs_mask"], teacher["inputs_mask"] = mask, 1 - mask
    calls(objective, student, teacher, 2)
    with pytest.warns(UserWarning, match="the masks of the two sides have no item in common"):
        objective(student, teacher)


def test_labels_that_are_all_ignored_are_warned_of(build, student, teacher):
    objective = build(hard_label_weight=1)
    student["losses"] = LossSum(student["logits"].sum() * 0, torch.tensor(0))
    calls(objective, student, teacher, 2)
    with pytest.warns(UserWarning, match=r"^hard_label_loss has counted no items .* all labels are -100"):
        objective(student, teacher)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_batch_with_nothing_to_count_is_legal(build, match, student, teacher, mask, first):
    objective = build(intermediate_matches=[match(loss="masked_mse")])
    for place in range(8):
        given = mask if place == first else ZEROS
        objective({**student, "logits_mask": given, "inputs_mask": given}, teacher)


def test_a_term_whose_weight_is_0_for_now_is_not_looked_at(build, match, student, teacher, mask):
    objective = build(kd_loss_type="ce_sum", intermediate_matches=[match(loss="masked_mse", weight_scheduler="growth")])
    student["inputs_mask"] = ZEROS
    for _ in range(5):
        objective(student, teacher, progress=0.0)
    for _ in range(2):
        objective(student, teacher, progress=0.5)
    with pytest.warns(UserWarning, match="has counted no items in its first 3 batches"):
        objective(student, teacher, progress=0.5)


def test_counts_are_read_until_one_is_above_0_and_not_after(build, student, teacher, offer):
    def loss(student_logits):
        return LossSum(student_logits.sum(), Count(4))

    class Count(torch.Tensor):
        read = 0

        def __new__(cls, value):
            return torch.tensor(value).as_subclass(cls)

        def __bool__(self):
            Count.read += 1
            return super().__bool__()

    objective = build(kd_loss_type=offer(loss))
    for _ in range(4):
        objective(student, teacher)
    assert Count.read <= 1


class Far:
    """A count on an accelerator."""

    is_cpu = is_meta = False

    def __float__(self):
        return -1.0


def test_a_count_on_an_accelerator_is_read_only_by_who_waits():
    assert is_valid_count(Far())
    assert not is_valid_count(Far(), waits=True)


@pytest.mark.parametrize("count", [-2.0, torch.nan, torch.inf])
def test_a_count_that_an_adaptor_did_not_have_checked_is_read_in_the_first_batch(
    build, student, teacher, monkeypatch, count
):
    monkeypatch.setattr("kdplug.contracts.outputs.is_valid_count", lambda count: True)  # as on an accelerator
    student["losses"] = LossSum(student["logits"].sum(), torch.tensor(count))
    with pytest.raises(OutputsError, match=r"^the count of hard_label_loss must be finite and >= 0, got (-2|nan|inf)$"):
        build(hard_label_weight=1)(student, teacher)


def detached(student):
    return {**student, "hidden": [one.detach() for one in student["hidden"]]}


DETACHED = r"^mine does not train the student: the student tensors that it reads have no gradient\. Look for detach\(\)"


def test_a_term_that_reads_detached_tensors_is_warned_of_once(build, match, student, teacher):
    objective = build(intermediate_matches=[match(name="mine")])
    with pytest.warns(UserWarning, match=DETACHED):
        objective(detached(student), teacher)
    objective(detached(student), teacher)


def test_detached_logits_are_warned_of(build, match, student, teacher):
    student["logits"] = student["logits"].detach()
    with pytest.warns(UserWarning, match=r"^kd_loss does not train the student"):
        build(intermediate_matches=[match()])(student, teacher)


def test_a_projection_alone_is_trained_in_a_loop_of_kdplug(build, match, matches_only, student, teacher):
    objective = build(**matches_only, intermediate_matches=[match(name="mine", proj=["linear", 6, 6])]).double()
    objective(detached(student), teacher)
    mark_trained(objective)
    with pytest.warns(UserWarning, match=DETACHED):
        objective(detached(student), teacher)


def test_nothing_is_said_in_evaluation(build, match, student, teacher):
    objective = build(intermediate_matches=[match(name="mine", proj=["linear", 6, 6])]).double()
    mark_trained(objective)
    with torch.no_grad():
        objective(detached(student), teacher)
    objective.eval()
    objective(detached(student), teacher)
    objective.train()
    with pytest.warns(UserWarning, match=DETACHED):  # but in training after it
        objective(detached(student), teacher)


def test_outputs_made_without_gradient_may_be_compared(build, match, student, teacher):
    objective = build(intermediate_matches=[match(proj=["linear", 6, 6])]).double()
    objective({**detached(student), "logits": student["logits"].detach()}, teacher)
