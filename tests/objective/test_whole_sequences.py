"""A loss that declares ``whole_sequences`` gets logits ``[batch, length, classes]`` with places that do not count filled."""

from __future__ import annotations

import pytest
import torch
from sequence_losses import policy, slopes
from torch import nn

import kdplug
from kdplug import FactoredLogits, LossSum, OutputsError, ShapeError, SignatureError, SparseLogits

BATCH, LENGTH, CLASSES = 3, 4, 5


class Recorder:
    """A loss of any inputs that keeps what it gets."""

    def __init__(self, *inputs):
        self.calls = []

        def record(student_logits, teacher_logits, temperature, labels, mask):
            self.calls.append(
                {
                    "student": student_logits,
                    "teacher": teacher_logits,
                    "temperature": temperature,
                    "labels": labels,
                    "mask": mask,
                }
            )
            return (student_logits - teacher_logits).square().sum()

        self.loss = kdplug.whole_sequences(record)


@pytest.fixture
def labels():
    return torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % CLASSES


def value_of(of, name, student, teacher, **keys):
    """The unweighted value and the gradient for the student's logits."""
    logits = student["logits"]
    logits.grad = None
    report = of({"loss": name}, **keys)(student, teacher)
    report.total.backward()
    return report.total.detach(), logits.grad


def test_it_gets_sequences_with_zeros_at_the_places_that_do_not_count(of, offer, student, teacher, mask, labels):
    recorder = Recorder()
    of({"loss": offer(recorder.loss)})({**student, "labels": labels, "logits_mask": mask}, teacher)
    (got,) = recorder.calls
    kept = mask.bool()
    assert torch.equal(got["mask"], kept)
    torch.testing.assert_close(got["student"], student["logits"].masked_fill(~kept.unsqueeze(-1), 0.0))
    torch.testing.assert_close(got["teacher"], teacher["logits"].masked_fill(~kept.unsqueeze(-1), 0.0))
    assert torch.equal(got["labels"], labels.masked_fill(~kept, -100))
    assert got["temperature"] == 4.0


def test_without_a_mask_every_place_counts(of, offer, student, teacher, labels):
    recorder = Recorder()
    of({"loss": offer(recorder.loss)})({**student, "labels": labels}, teacher)
    (got,) = recorder.calls
    assert torch.equal(got["mask"], torch.ones(BATCH, LENGTH, dtype=torch.bool))
    assert torch.equal(got["student"], student["logits"])
    assert torch.equal(got["labels"], labels)


def test_without_labels_it_gets_none(of, offer, student, teacher, mask):
    recorder = Recorder()
    of({"loss": offer(recorder.loss)})({**student, "logits_mask": mask}, teacher)
    assert recorder.calls[0]["labels"] is None


def test_labels_that_are_probabilities_hold_0_at_other_places(of, offer, student, teacher, mask, random):
    recorder, probabilities = Recorder(), random(BATCH, LENGTH, CLASSES).softmax(-1)
    of({"loss": offer(recorder.loss)})({**student, "labels": probabilities, "logits_mask": mask}, teacher)
    expected = probabilities.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
    torch.testing.assert_close(recorder.calls[0]["labels"], expected)


def test_without_the_declaration_a_loss_that_requests_the_mask_gets_items(of, offer, student, teacher, mask):
    seen = []

    def items(student_logits, teacher_logits, mask):
        seen.append((student_logits.shape, mask))
        return (student_logits - teacher_logits).square().sum()

    of({"loss": offer(items)})({**student, "logits_mask": mask}, teacher)
    assert seen == [((7, CLASSES), None)]


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("loss", [slopes, policy])
def test_a_mask_of_either_side_gives_the_loss_of_the_sequences(of, offer, student, teacher, mask, labels, loss, side):
    student = {**student, "labels": labels, **({"logits_mask": mask} if side != "teacher" else {})}
    teacher = {**teacher, **({"logits_mask": mask.bool()} if side != "student" else {})}
    value, gradient = value_of(of, offer(loss), student, teacher)
    leaf = student["logits"].detach().clone().requires_grad_()
    values = {"student_logits": leaf, "teacher_logits": teacher["logits"], "mask": mask.bool()}
    expected = (loss(**values) if loss is slopes else loss(**values, labels=labels)).value
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("loss", [slopes, policy])
def test_what_a_masked_place_holds_changes_nothing(of, offer, student, teacher, mask, labels, loss, filling):
    name, hidden = offer(loss), ~mask.bool()
    student = {**student, "labels": labels, "logits_mask": mask}
    expected = value_of(of, name, student, teacher)
    with torch.no_grad():
        student["logits"][hidden] = filling
        teacher["logits"][hidden] = filling
    student["labels"] = labels.masked_fill(hidden, CLASSES + 7)
    value, gradient = value_of(of, name, student, teacher)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    assert not gradient[hidden].any()


def test_masks_that_differ_are_an_error_with_the_place(of, offer, student, teacher, mask):
    other = mask.clone()
    other[1] = torch.tensor([0, 1, 1, 0])  # selects as many places
    with pytest.raises(OutputsError) as error:
        of({"loss": offer(slopes)})({**student, "logits_mask": mask}, {**teacher, "logits_mask": other})
    assert str(error.value).startswith(
        "logits_mask: is 1 for the student and 0 for the teacher at example 1, position 0, but local:offered "
        "declares whole_sequences"
    )


@pytest.mark.parametrize("shape", [(BATCH, CLASSES), (BATCH, 2, LENGTH, CLASSES), (CLASSES,)])
def test_logits_that_are_no_sequences_are_an_error_that_says_what_is_needed(of, offer, random, shape):
    logits = random(*shape, requires_grad=True)
    with pytest.raises(ShapeError) as error:
        of({"loss": offer(slopes)})({"logits": logits}, {"logits": random(*shape)})
    expected = (
        f"terms.0.student.logits: are {list(shape)}, but local:offered declares whole_sequences, so it needs [batch"
    )
    assert str(error.value).startswith(expected)


def test_sides_of_different_length_are_an_error(of, offer, student, random):
    with pytest.raises(ShapeError, match=r"\[3, 4, 5\] and those of the teacher \[3, 6, 5\] differ in batch or length"):
        of({"loss": offer(slopes)})(student, {"logits": random(BATCH, 6, CLASSES)})


def test_a_mask_of_another_shape_is_an_error(of, offer, student, teacher):
    with pytest.raises(ShapeError, match=r"a mask of shape \[3, 5\] .*it must be \[3, 4\]"):
        of({"loss": offer(slopes)})({**student, "logits_mask": torch.ones(BATCH, 5)}, teacher)


def test_a_mask_of_other_numbers_is_an_error(of, offer, student, teacher, mask):
    with pytest.raises(OutputsError, match="must contain only 0 and 1"):
        of({"loss": offer(slopes)})({**student, "logits_mask": mask * 2}, teacher)


def test_an_empty_selection_is_0_and_keeps_the_graph(of, offer, student, teacher):
    nothing = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    value, gradient = value_of(of, offer(slopes), {**student, "logits_mask": nothing}, teacher)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_term_with_layers_refuses_the_declaration(of, offer):
    @kdplug.whole_sequences
    def on_features(student_features, teacher_features):
        return (student_features - teacher_features).square().mean()

    with pytest.raises(
        SignatureError, match=r"^terms\.0\.loss: local:offered declares whole_sequences, which is for a"
    ):
        of({"loss": offer(on_features), "layer_S": 0, "layer_T": 0, "feature": "hidden"})


def test_a_closed_form_refuses_the_declaration(of, offer):
    loss = kdplug.closed_form(lambda student, teacher, temperature: student)(slopes_of_items())
    with pytest.raises(SignatureError, match="declares whole_sequences and closed_form"):
        of({"loss": offer(kdplug.whole_sequences(loss))})


def slopes_of_items():
    def items(student_logits, teacher_logits, temperature) -> LossSum:
        return LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))

    return items


def test_a_class_may_declare_it_too(of, offer, student, teacher, mask):
    class Written(nn.Module):
        whole_sequences = True

        def forward(self, student_logits, teacher_logits, mask) -> LossSum:
            return slopes(student_logits, teacher_logits, mask)

    student = {**student, "logits_mask": mask}
    expected = value_of(of, offer(slopes), student, teacher)
    found = value_of(of, offer(Written, name="written"), student, teacher)
    torch.testing.assert_close(found, expected)


class Sharpness(nn.Module):
    """A temperature per item, which depends on all items: their rank by the student's largest logit."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits):
        largest = student_logits.amax(-1)
        return 1.0 + self.scale * (largest - largest.mean()).abs()


def test_a_scheduled_temperature_is_computed_from_the_places_that_count(of, offer, student, teacher, mask):
    recorder, kept = Recorder(), mask.bool()
    term = {"loss": offer(recorder.loss), "temperature": 2.0}
    term["temperature_scheduler"] = offer(Sharpness, "temperature_schedulers")
    with torch.no_grad():
        student["logits"][~kept] = 1e6
    with pytest.warns(UserWarning, match="without a gradient"):  # the recorder ignores the temperature
        of(term)({**student, "logits_mask": mask}, teacher)
    found = recorder.calls[0]["temperature"]
    expected = Sharpness()(student["logits"][kept], teacher["logits"][kept])
    assert found.shape == (BATCH, LENGTH)
    torch.testing.assert_close(found[kept], expected)
    assert (found[~kept] == 2.0).all()


def test_a_trained_temperature_gets_its_gradient(of, offer, student, teacher, mask):
    @kdplug.whole_sequences
    def tempered(student_logits, teacher_logits, temperature, mask):
        own, theirs = (side / temperature.unsqueeze(-1) for side in (student_logits, teacher_logits))
        return slopes(own, theirs, mask)

    scheduler = offer(Sharpness, "temperature_schedulers")
    objective = of({"loss": offer(tempered), "temperature_scheduler": scheduler})
    objective({**student, "logits_mask": mask}, teacher).total.backward()
    (parameter,) = objective.parameters()
    assert parameter.grad is not None
    assert parameter.grad.abs() > 0


def test_the_label_shift_applies_to_the_places_that_count(of, offer, student, teacher, mask, labels):
    recorder, kept = Recorder(), mask.bool()
    student = {**student, "labels": labels, "logits_mask": mask}
    of({"loss": offer(recorder.loss)}, probability_shift=True)(student, teacher)
    found = recorder.calls[0]["teacher"]
    assert torch.equal(found[kept].argmax(-1), labels[kept])
    assert not found[~kept].any()


def test_each_head_has_its_own_mask(of, offer, random, mask):
    recorder = Recorder()
    heads = [random(BATCH, LENGTH, CLASSES, requires_grad=True) for _ in range(2)]
    masks = [mask, torch.ones_like(mask)]
    of({"loss": offer(recorder.loss)})({"logits": heads, "logits_mask": masks}, {"logits": heads, "logits_mask": masks})
    assert [int(call["mask"].sum()) for call in recorder.calls] == [7, 12]


def mean_logits(teacher_logits_list):
    return torch.stack(list(teacher_logits_list)).mean(0)


@pytest.mark.parametrize("masked", [True, False])
def test_several_teachers_are_combined_at_the_places_that_count(of, offer, student, teacher, mask, masked, random):
    recorder, other = Recorder(), {"logits": random(BATCH, LENGTH, CLASSES)}
    offer(mean_logits, "teacher_combiners", "mean")
    objective = of({"loss": offer(recorder.loss)}, teacher_combiner="mean", teachers=2)
    student = {**student, **({"logits_mask": mask} if masked else {})}
    objective(student, {"0": teacher, "1": other})
    kept = mask.bool() if masked else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    expected = (teacher["logits"] + other["logits"]).div(2).masked_fill(~kept.unsqueeze(-1), 0.0)
    torch.testing.assert_close(recorder.calls[0]["teacher"], expected)
    assert torch.equal(recorder.calls[0]["mask"], kept)


def test_teachers_whose_masks_differ_are_an_error(of, offer, student, teacher, mask):
    offer(mean_logits, "teacher_combiners", "mean")
    objective = of({"loss": offer(slopes)}, teacher_combiner="mean", teachers=2)
    teachers = [{**teacher, "logits_mask": mask}, {**teacher, "logits_mask": mask.flip(1)}]
    with pytest.raises(OutputsError, match=r"is 1 for the teacher.* and 0 for the teacher.*example 1, position 0"):
        objective(student, dict(zip("01", teachers, strict=True)))


def test_a_sparse_teacher_is_compared_on_categories_in_sequences(of, offer, student, teacher, mask):
    seen = []

    @kdplug.coarsens
    @kdplug.whole_sequences
    def coarse(student_logits, teacher_logits, mask):
        seen.append((student_logits, teacher_logits))
        own, theirs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        ratio = (theirs - own).masked_fill(theirs == -torch.inf, 0.0)
        return (theirs.exp() * ratio).sum(-1).masked_fill(~mask, 0.0).sum()

    sparse = SparseLogits.top(teacher["logits"], 2, 1.0)
    term, whole = {"loss": offer(coarse), "temperature": 1.0}, SparseLogits.top(teacher["logits"], CLASSES, 1.0)
    of(term)({**student, "logits_mask": mask}, {"logits": sparse})
    assert [side.shape for side in seen[0]] == [(BATCH, LENGTH, 3)] * 2
    assert not seen[0][1][~mask.bool()].any()
    known = of(term)({**student, "logits_mask": mask}, {"logits": whole}).total
    torch.testing.assert_close(known, of(term)({**student, "logits_mask": mask}, teacher).total)


@pytest.mark.parametrize("masked", [True, False])
def test_a_loss_on_sparse_logits_gets_them_in_sequences(of, offer, student, teacher, mask, masked):
    seen = []

    @kdplug.whole_sequences
    def sparse_loss(student_logits, teacher_sparse, mask):
        seen.append((student_logits, teacher_sparse))
        return (student_logits.gather(-1, teacher_sparse.ids) - teacher_sparse.log_probs).square().sum()

    sparse = SparseLogits.top(teacher["logits"], 2, 1.0)
    student = {**student, **({"logits_mask": mask} if masked else {})}
    of({"loss": offer(sparse_loss), "temperature": 1.0})(student, {"logits": sparse})
    kept = mask.bool() if masked else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    found = seen[0][1]
    assert found.shape == (BATCH, LENGTH, CLASSES)
    for key in ("ids", "log_probs", "tail"):
        part, given = getattr(found, key), getattr(sparse, key)
        assert torch.equal(part[kept], given[kept])
        assert not part[~kept].any()


def test_a_loss_across_vocabularies_may_declare_it(of, offer, student, random, mask):
    @kdplug.across_vocabularies
    @kdplug.whole_sequences
    def norms(student_logits, teacher_logits, mask):
        return (student_logits.norm(dim=-1) - teacher_logits.norm(dim=-1)).masked_fill(~mask, 0.0).square().sum()

    wide = random(BATCH, LENGTH, 9)
    report = of({"loss": offer(norms)})({**student, "logits_mask": mask}, {"logits": wide})
    assert report.total > 0


def test_factored_logits_in_one_chunk_are_whole_sequences_too(of, offer, random, mask, labels):
    hidden, weight = random(BATCH, LENGTH, 6, requires_grad=True), random(CLASSES, 6)
    other = {"logits": random(BATCH, LENGTH, CLASSES)}
    name, student = offer(policy), {"labels": labels, "logits_mask": mask}
    found = []
    for logits in (FactoredLogits(hidden, weight), hidden @ weight.T):
        total = of({"loss": name})({**student, "logits": logits}, other).total
        found += torch.autograd.grad(total, hidden)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
