"""The loss on logits: heads, masks, shapes and shifted probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kdplug
from kdplug import OutputsError, ShapeError
from kdplug.objective.selection import shift

GOLDEN = Path(__file__).parents[1] / "golden" / "textbrewer.json"
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


@pytest.fixture
def seen(offer):
    """What an offered kd loss was called with, and its name."""
    calls = []

    @kdplug.takes_numbers
    def loss(student_logits, teacher_logits, labels, mask):
        calls.append((student_logits, teacher_logits, labels, mask))
        return (student_logits - teacher_logits).square().mean()

    offer(loss)
    return calls


def test_heads_are_summed_into_one_term(build, random):
    student, teacher = [random(3, 5), random(3, 7)], [random(3, 5), random(3, 7)]
    report = build()({"logits": student}, {"logits": teacher})
    alone = [build()(*pair).total for pair in zip(student, teacher, strict=True)]
    assert list(report.terms) == ["kd_loss"]
    torch.testing.assert_close(report.total, alone[0] + alone[1], rtol=1e-13, atol=0)


def test_each_head_keeps_its_own_sum_and_count(build, random):
    student, teacher = [random(3, 5), random(2, 5)], [random(3, 5), random(2, 5)]
    term = build(kd_loss_type="ce_sum")({"logits": student}, {"logits": teacher}).terms["kd_loss"]
    assert [part.count for part in term.parts] == [3, 2]
    torch.testing.assert_close(sum(part.value for part in term.parts), term.value, rtol=1e-13, atol=0)


def test_heads_that_differ_in_number_are_an_error(build, random):
    with pytest.raises(OutputsError, match="the student returned logits of 2, the teacher of 1"):
        build()({"logits": [random(3, 5), random(3, 5)]}, random(3, 5))


def test_one_mask_serves_every_head(build, random, mask):
    student, teacher = ([random(3, 4, 5), random(3, 4, 5)] for _ in range(2))
    one = build()({"logits": student, "logits_mask": mask}, {"logits": teacher}).total
    each = build()({"logits": student, "logits_mask": [mask, mask]}, {"logits": teacher}).total
    assert one == each
    assert one != build()({"logits": student}, {"logits": teacher}).total


def test_every_head_may_have_a_mask_of_its_own(build, random, mask):
    student, teacher = ([random(3, 4, 5), random(3, 4, 5)] for _ in range(2))
    masks = [mask, mask.flip(0)]
    total = build()({"logits": student, "logits_mask": masks}, {"logits": teacher}).total
    alone = [build()({"logits": s, "logits_mask": m}, t).total for s, t, m in zip(student, teacher, masks, strict=True)]
    torch.testing.assert_close(total, sum(alone), rtol=1e-13, atol=0)


def test_masks_that_differ_from_heads_in_number_are_an_error(build, random, mask):
    heads = [random(3, 4, 5)] * 3
    with pytest.raises(OutputsError, match=r"^teacher\.logits_mask: 2 masks do not match logits of 3 heads"):
        build()({"logits": heads}, {"logits": heads, "logits_mask": [mask, mask]})


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_mask_on_one_side_serves_both(build, random, mask, side):
    student, teacher = {"logits": random(3, 4, 5)}, {"logits": random(3, 4, 5)}
    expected = build()(student["logits"][mask.bool()], teacher["logits"][mask.bool()]).total
    for name, outputs in (("student", student), ("teacher", teacher)):
        if side in (name, "both"):
            outputs["logits_mask"] = mask
    assert build()(student, teacher).total == expected


def test_each_side_uses_its_own_mask(build, random, mask):
    student, teacher = random(3, 4, 5), random(3, 6, 5)
    other = torch.zeros(3, 6)
    other[2] = 1
    other[0, 1] = 1
    expected = build()(student[mask.bool()], teacher[other.bool()]).total
    assert (
        build()({"logits": student, "logits_mask": mask}, {"logits": teacher, "logits_mask": other}).total == expected
    )


def test_masks_that_keep_different_numbers_are_an_error(build, random, mask):
    student, teacher = {"logits": random(3, 4, 5), "logits_mask": mask}, {"logits": random(3, 4, 5)}
    teacher["logits_mask"] = torch.ones(3, 4)
    with pytest.raises(
        ShapeError,
        match=r"^logits_mask: the number of items .* is 7 for the student, but 12 for the teacher\. Both masks",
    ):
        build()(student, teacher)


def test_one_mask_does_not_serve_logits_of_another_length(build, random, mask):
    with pytest.raises(
        ShapeError, match=r"^teacher\.logits_mask: a mask of shape \[3, 4\] does not match logits \[3, 6, 5\]"
    ):
        build()({"logits": random(3, 4, 5), "logits_mask": mask}, random(3, 6, 5))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_a_mask_may_have_any_dtype(build, random, mask, dtype):
    student, teacher = random(3, 4, 5), random(3, 4, 5)
    expected = build()({"logits": student, "logits_mask": mask}, teacher).total
    assert build()({"logits": student, "logits_mask": mask.to(dtype)}, teacher).total == expected


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 4, 5), (2, 4)])
def test_a_mask_of_another_shape_is_an_error(build, random, side, shape):
    outputs = {"student": {"logits": random(3, 4, 5)}, "teacher": {"logits": random(3, 4, 5)}}
    outputs[side]["logits_mask"] = torch.ones(shape)
    with pytest.raises(
        ShapeError, match=r"logits_mask: a mask of shape \[.*\] does not match logits \[3, 4, 5\]: it must be \[3, 4\]"
    ):
        build()(outputs["student"], outputs["teacher"])


def test_a_mask_over_examples_selects_rows_of_2d_logits(build, random):
    student, teacher = random(3, 5), random(3, 5)
    total = build()({"logits": student, "logits_mask": torch.tensor([1, 0, 1])}, teacher).total
    assert total == build()(student[[0, 2]], teacher[[0, 2]]).total


def test_a_mask_over_positions_has_no_effect_on_2d_logits_and_one_warning_says_so(build, random, mask):
    student, teacher, objective = random(3, 5), random(3, 5), build()
    with pytest.warns(UserWarning, match=r"logits_mask \[3, 4\] has no effect: the logits \[3, 5\]") as caught:
        total = objective({"logits": [student, student], "logits_mask": mask}, {"logits": [teacher, teacher]}).total
    assert len(caught) == 1
    assert total == 2 * objective({"logits": student, "logits_mask": mask}, teacher).total
    assert total == 2 * build()(student, teacher).total


def test_padding_that_holds_nan_changes_nothing(build, student, teacher, mask):
    student["logits_mask"] = mask
    build()(student, teacher).total.backward()
    expected, student["logits"].grad = student["logits"].grad, None
    with torch.no_grad():
        for logits in (student["logits"], teacher["logits"]):
            logits[mask == 0] = float("nan")
    total = build()(student, teacher).total
    total.backward()
    assert total.isfinite()
    assert torch.equal(student["logits"].grad, expected)
    assert not student["logits"].grad[mask == 0].any()


def test_a_batch_that_is_all_padding_gives_0_and_finite_gradients(build, offer, student, teacher):
    def refuse(student_logits, teacher_logits):
        raise AssertionError("called")

    student["logits_mask"] = torch.zeros(3, 4)
    student["logits"].data.fill_(float("nan"))
    report = build(kd_loss_type=offer(refuse))(student, teacher)
    report.total.backward()
    assert (report.total, report.terms["kd_loss"].count) == (0, 0)
    assert not student["logits"].grad.any()


def test_an_empty_batch_gives_0(build, random):
    student = random(0, 5, requires_grad=True)
    total = build()(student, random(0, 5)).total
    total.backward()
    assert total == 0


def test_an_all_masked_head_adds_0_to_the_others(build, random, mask):
    student, teacher = ([random(3, 4, 5), random(3, 4, 5)] for _ in range(2))
    outputs = {"logits": student, "logits_mask": [mask, torch.zeros(3, 4)]}
    expected = build()({"logits": student[0], "logits_mask": mask}, teacher[0]).total
    assert build()(outputs, {"logits": teacher}).total == expected


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 5, 5), (3, 5), (3, 4, 1)])
def test_logits_of_different_shapes_are_an_error(build, random, shape):
    with pytest.raises(ShapeError, match=r"^logits: the student's \[3, 4, 5\] and the teacher's"):
        build()(random(3, 4, 5), random(*shape))


def test_selected_logits_of_different_widths_are_an_error(build, random, mask):
    with pytest.raises(ShapeError, match=r"^logits: the student's \[7, 5\] and the teacher's \[7, 6\]"):
        build()({"logits": random(3, 4, 5), "logits_mask": mask}, random(3, 4, 6))


def test_a_loss_that_asks_for_a_mask_gets_none_after_the_selection(build, seen, random, mask):
    build(kd_loss_type="offered")({"logits": random(3, 4, 5), "logits_mask": mask}, random(3, 4, 5))
    assert (seen[0][0].shape, seen[0][3]) == ((7, 5), None)


def test_labels_are_selected_with_the_students_mask(build, seen, random, mask):
    labels = torch.arange(12).view(3, 4)
    build(kd_loss_type="offered")({"logits": random(3, 4, 5), "logits_mask": mask, "labels": labels}, random(3, 4, 5))
    assert seen[0][2].tolist() == [0, 1, 2, 3, 4, 5, 8]


def test_a_loss_that_asks_for_labels_gets_none_where_there_are_none(build, seen, random):
    build(kd_loss_type="offered")(random(3, 5), random(3, 5))
    assert seen[0][2] is None


def test_each_head_gets_its_own_labels(build, seen, random):
    labels = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    build(kd_loss_type="offered")({"logits": [random(2, 5)] * 2, "labels": labels}, {"logits": [random(2, 5)] * 2})
    assert [call[2].tolist() for call in seen] == [[0, 1], [2, 3]]


# Probability shift


def test_the_shift_equals_textbrewers():
    golden = json.loads(GOLDEN.read_text())

    def wave(shape, phase):
        i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return (2 * torch.sin(0.7 * i + phase) + 0.3 * torch.cos((1.9 * i * i) % 7 + phase)).float().view(shape)

    flat = shift(wave((3, 7), 1.0), torch.tensor([0, 3, 6]))
    torch.testing.assert_close(flat, torch.tensor(golden["prob_shift_2d labels=[0,3,6]"]))
    deep = golden["prob_shift_3d labels"]
    torch.testing.assert_close(shift(wave((3, 4, 7), 1.5), torch.tensor(deep["labels"])), torch.tensor(deep["out"]))


def test_after_the_shift_the_label_has_the_largest_logit(random):
    logits, labels = random(4, 6), torch.tensor([0, 5, 2, 3])
    shifted = shift(logits, labels)
    assert torch.equal(shifted.argmax(-1), labels)
    assert torch.equal(shifted.sort(-1).values, logits.sort(-1).values)


def test_a_right_teacher_is_left_alone(random):
    logits = random(4, 6)
    assert torch.equal(shift(logits, logits.argmax(-1)), logits)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_negative_label_leaves_its_row_alone(random, shape):
    logits = random(*shape, 6)
    assert torch.equal(shift(logits, torch.full(shape, -1)), logits)
    assert torch.equal(shift(logits, torch.full(shape, -100)), logits)


def test_the_teachers_tensor_is_not_touched(build, student, teacher):
    student["labels"] = torch.zeros(3, 4, dtype=torch.int64)
    before = teacher["logits"].clone()
    shifted = build(probability_shift=True)(student, teacher).total
    assert torch.equal(teacher["logits"], before)
    assert shifted != build()(student, teacher).total


def test_the_shift_works_together_with_a_mask(build, student, teacher, mask):
    labels = torch.tensor([[0, -100, 2, 3], [4, 1, 99, 99], [1, 99, 99, 99]])
    student |= {"labels": labels, "logits_mask": mask}
    kept = mask.bool()
    expected = build()(student["logits"][kept], shift(teacher["logits"][kept], labels[kept])).total
    assert build(probability_shift=True)(student, teacher).total == expected


def test_a_label_beyond_the_classes_is_an_error(build, student, teacher):
    student["labels"] = torch.full((3, 4), 5)
    with pytest.raises(OutputsError, match=r"^student\.labels: label 5 does not exist: there are 5 classes"):
        build(probability_shift=True)(student, teacher)


def test_labels_of_a_smaller_integer_type_will_do(random):
    logits = random(3, 4)
    labels = torch.tensor([0, 1, -1], dtype=torch.int32)
    assert torch.equal(shift(logits, labels), shift(logits, labels.long()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"^probability_shift: needs labels, but the student returned none"),
        (torch.zeros(3, dtype=torch.int64), r"^student\.labels: \[3\] do not match logits \[3, 4, 5\]"),
        (torch.zeros(3, 4), r"^student\.labels: \[3, 4\] do not match logits .* Convert class indices with"),
        (
            torch.zeros(3, 4, 5),
            r"^student\.labels: must contain integer class indices for probability_shift, got torch\.float32",
        ),
        (
            [torch.zeros(3, 4, dtype=torch.int64)] * 2,
            r"^student\.labels: the numbers of heads differ: 1 for logits, 2 for labels",
        ),
    ],
)
def test_labels_that_the_shift_cannot_use_are_an_error(build, student, teacher, labels, message):
    student["labels"] = labels
    with pytest.raises((OutputsError, ShapeError), match=message):
        build(probability_shift=True)(student, teacher)


@pytest.mark.parametrize("shape", [(3, 1), (3, 4, 1)])
def test_a_softmax_over_one_class_is_an_error_and_no_constant(build, random, shape):
    with pytest.raises(
        OutputsError, match=r"student.logits: have one class, but local:ce does not declare takes_numbers"
    ):
        build()({"logits": random(*shape)}, {"logits": random(*shape)})


def test_a_loss_of_numbers_takes_one_output(build, random, seen):
    student, teacher = random(3, 1), random(3, 1)
    report = build(kd_loss_type="offered")({"logits": student}, {"logits": teacher})
    torch.testing.assert_close(report.total, (student - teacher).square().mean())


def test_a_teacher_with_one_class_needs_a_loss_of_numbers_too(offer, random):
    @kdplug.across_vocabularies
    def sorted_distance(student_logits, teacher_logits):
        return student_logits.sum() * 0

    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type=offer(sorted_distance)))
    with pytest.raises(OutputsError, match=r"^teacher.logits: have one class"):
        objective({"logits": random(3, 5)}, {"logits": random(3, 1)})


def test_no_temperature_is_computed_from_a_single_class(offer, random):
    @kdplug.takes_numbers
    def squared(student_logits, teacher_logits, temperature):
        return ((student_logits - teacher_logits) / temperature.unsqueeze(-1)).square().mean()

    offer(
        lambda student_logits, teacher_logits, temperature: temperature * student_logits[..., 0].sign(),
        "temperature_schedulers",
        "cosine",
    )
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type=offer(squared), temperature_scheduler="cosine"))
    with pytest.raises(
        OutputsError, match=r"^student.logits: have one class, and local:cosine computes the temperature"
    ):
        objective({"logits": random(3, 1)}, {"logits": random(3, 1)})
