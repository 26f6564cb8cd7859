"""Several teachers: each by its own mask, combined, shifted, and read by the matches that name them."""

from __future__ import annotations

import pytest
import torch

from kdplug import ConfigError, DistillationConfig, Objective, OutputsError, ShapeError, SignatureError
from kdplug.errors import NotInstalledError


def mean_logits(teacher_logits_list):
    return sum(teacher_logits_list[1:], start=teacher_logits_list[0]) / len(teacher_logits_list)


@pytest.fixture(autouse=True)
def combiner(offer):
    offer(mean_logits, "teacher_combiners", "mean_logits")


@pytest.fixture
def several():
    """An objective of two teachers, or of those with the given keys."""
    return lambda teachers=2, **keys: Objective(DistillationConfig(**keys), teachers)


@pytest.fixture
def teachers(random):
    """What the adaptors of two teachers return."""
    return [{"logits": random(3, 4, 5), "hidden": [random(3, 4, 6) for _ in range(3)]} for _ in range(2)]


def total(objective, student, teacher):
    return objective(student=student, teacher=teacher).total


def gradient(objective, student, teacher):
    return torch.autograd.grad(total(objective, student, teacher), student["logits"])[0]


def test_the_loss_is_that_against_the_combined_logits(build, several, student, teachers):
    mean = {"logits": (teachers[0]["logits"] + teachers[1]["logits"]) / 2}
    assert torch.equal(total(several(), student, teachers), total(build(), student, mean))
    assert torch.equal(gradient(several(), student, teachers), gradient(build(), student, mean))


@pytest.mark.parametrize("form", ["alone", "list", "mapping"])
def test_one_teacher_is_one_teacher_in_every_form(build, several, student, teachers, form):
    given = {"alone": teachers[0], "list": [teachers[0]], "mapping": {"big": teachers[0]}}[form]
    assert torch.equal(total(several(["big"]), student, given), total(build(), student, teachers[0]))


def test_two_equal_teachers_are_one(build, several, student, teachers):
    one = total(build(), student, teachers[0])
    assert torch.equal(total(several(), student, [teachers[0]] * 2), one)


def test_a_mapping_is_read_by_key(several, student, teachers, offer):
    offer(lambda teacher_logits_list: teacher_logits_list[0], "teacher_combiners", "first")
    objective = several(["a", "b"], teacher_combiner="first")
    there = total(objective, student, {"a": teachers[0], "b": teachers[1]})
    back = total(objective, student, {"b": teachers[1], "a": teachers[0]})
    assert there == back == total(objective, student, teachers)
    assert there != total(objective, student, teachers[::-1])


def test_1_11_each_teacher_is_masked_by_its_own_mask_and_not_by_the_first_ones(build, several, student, teachers):
    masks = [torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)]
    for mask, place in zip(masks, (0, 1, 3), strict=True):
        mask[:, place] = 1
    student["logits_mask"], teachers[0]["logits_mask"], teachers[1]["logits_mask"] = masks
    kept = (teachers[0]["logits"][:, 1] + teachers[1]["logits"][:, 3]) / 2
    expected = total(build(), {"logits": student["logits"][:, 0]}, {"logits": kept})
    assert torch.equal(total(several(), student, teachers), expected)


def test_a_teacher_without_a_mask_takes_the_students(build, several, student, teachers, mask):
    student["logits_mask"] = teachers[1]["logits_mask"] = mask
    mean = {"logits": (teachers[0]["logits"] + teachers[1]["logits"]) / 2}
    assert torch.equal(total(several(), student, teachers), total(build(), student, mean))


def test_a_mask_that_the_teachers_share_serves_the_student(build, several, student, teachers, mask):
    mean = {"logits": (teachers[0]["logits"] + teachers[1]["logits"]) / 2, "logits_mask": mask}
    teachers[0]["logits_mask"], teachers[1]["logits_mask"] = mask, mask.clone().bool()
    assert torch.equal(total(several(), student, teachers), total(build(), student, mean))


def test_masks_that_differ_without_one_of_the_student_are_an_error(several, student, teachers, mask):
    teachers[0]["logits_mask"], teachers[1]["logits_mask"] = mask, mask.flip(1)
    with pytest.raises(OutputsError, match="logits_mask: the teachers' masks differ, and the student returned no mask"):
        several()(student=student, teacher=teachers)


def test_masks_that_keep_different_numbers_are_an_error(several, student, teachers, mask):
    student["logits_mask"], teachers[1]["logits_mask"] = mask, torch.ones(3, 4)
    with pytest.raises(ShapeError, match=r"the mask keeps is 7 for the student, but 12 for teacher 1\. All masks"):
        several()(student=student, teacher=teachers)


def test_what_a_mask_leaves_out_may_hold_anything(several, student, teachers, mask):
    clean = {**student, "logits_mask": mask}
    expected = gradient(several(), clean, teachers)
    teachers[1]["logits"][mask == 0] = float("nan")
    assert torch.equal(gradient(several(), clean, teachers), expected)


def test_where_no_item_counts_the_loss_is_0_and_the_combiner_is_not_asked(several, student, teachers, offer):
    offer(lambda teacher_logits_list: 1 / 0, "teacher_combiners", "never")
    student["logits_mask"] = torch.zeros(3, 4)
    objective = several(teacher_combiner="never")
    assert total(objective, student, teachers) == 0
    assert not gradient(objective, student, teachers).any()


def test_1_6_the_shift_comes_after_the_combination(build, several, student, teachers, random):
    student["labels"] = torch.arange(12).reshape(3, 4) % 5
    mean = {"logits": (teachers[0]["logits"] + teachers[1]["logits"]) / 2}
    found = total(several(probability_shift=True), student, teachers)
    assert torch.equal(found, total(build(probability_shift=True), student, mean))
    assert found != total(build(), student, mean)


def test_each_head_is_combined_by_itself(build, several, teachers, random):
    student = {"logits": [random(3, 5, requires_grad=True) for _ in range(2)]}
    heads = [{"logits": [random(3, 5) for _ in range(2)]} for _ in range(2)]
    mean = {"logits": [(one + two) / 2 for one, two in zip(*(h["logits"] for h in heads), strict=True)]}
    assert torch.equal(total(several(), student, heads), total(build(), student, mean))


def test_a_combiner_gets_the_inputs_it_asks_for(several, student, teachers, offer):
    seen = {}

    def asks(teacher_logits_list, student_logits, labels, temperature, progress, step, total_steps):
        seen.update(locals())
        return teacher_logits_list[0]

    offer(asks, "teacher_combiners")
    student["labels"] = torch.zeros(3, 4, dtype=torch.long)
    several(teacher_combiner="offered", temperature=7)(student, teachers, progress=0.5, step=2, total_steps=4)
    assert [seen[name] for name in ("temperature", "progress", "step", "total_steps")] == [7.0, 0.5, 2, 4]
    assert not seen["student_logits"].requires_grad
    assert torch.equal(seen["labels"], student["labels"])


def test_the_labels_that_a_combiner_gets_are_those_of_the_items_that_count(several, student, teachers, offer, mask):
    seen = []
    offer(lambda teacher_logits_list, labels: seen.append(labels) or teacher_logits_list[0], "teacher_combiners")
    student |= {"labels": torch.arange(12).reshape(3, 4) % 5, "logits_mask": mask}
    several(teacher_combiner="offered")(student, teachers)
    assert seen[0].tolist() == student["labels"][mask.bool()].tolist()


class Learned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.5).double())

    def forward(self, teacher_logits_list):
        return self.share * teacher_logits_list[0] + (1 - self.share) * teacher_logits_list[1]


def test_nothing_of_a_combiner_is_trained(several, student, teachers, offer):
    offer(Learned, "teacher_combiners")
    objective = several(teacher_combiner="offered")
    total(objective, student, teachers).backward()
    assert objective.param_groups() == []
    assert [name for name, _ in objective.named_parameters()] == ["configured.0.logits.combiner.combine.share"]
    assert objective.configured["0"].logits.combiner.combine.share.grad is None


def test_autocast_does_not_reach_a_combiner(several, student, teachers, offer):
    types = []

    def combine(teacher_logits_list):
        types.append((teacher_logits_list[0].mT @ teacher_logits_list[1]).dtype)
        return teacher_logits_list[0]

    offer(combine, "teacher_combiners")
    teachers = [{"logits": teacher["logits"].bfloat16()} for teacher in teachers]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        several(teacher_combiner="offered")({"logits": student["logits"].float()}, teachers)
    assert types == [torch.float32]


@pytest.mark.parametrize(
    ("combine", "got"),
    [
        (lambda teacher_logits_list: teacher_logits_list[0][0], r"\[4, 5\]"),
        (lambda teacher_logits_list: None, "NoneType"),
    ],
)
def test_a_combiner_that_returns_no_logits_is_an_error(several, student, teachers, offer, combine, got):
    offer(combine, "teacher_combiners")
    with pytest.raises(
        SignatureError, match=rf"teacher_combiner: local:offered must return logits \[3, 4, 5\], got {got}"
    ):
        several(teacher_combiner="offered")(student, teachers)


def test_missing_logits_of_one_teacher_are_reported(several, student, teachers):
    del teachers[1]["logits"]
    with pytest.raises(OutputsError, match="kd_loss_weight: is 1, but the teacher 1 returned no logits, only hidden"):
        several()(student, teachers)


def test_a_teacher_with_other_classes_or_heads_is_reported(several, student, teachers, random):
    with pytest.raises(ShapeError, match=r"the student's \[3, 4, 5\] and those of teacher 'b' \[3, 4, 9\]"):
        several(["a", "b"])(student, {"a": teachers[0], "b": {"logits": random(3, 4, 9)}})
    with pytest.raises(OutputsError, match="the student returned logits of 1, the teacher 1 of 2"):
        several()(student, [teachers[0], {"logits": [random(3, 4, 5)] * 2}])


@pytest.mark.parametrize("place", [0, 1])
def test_a_match_reads_the_teacher_it_names(build, several, student, teachers, match, matches_only, place):
    objective = several(intermediate_matches=[match(teacher=place)], **matches_only)
    expected = total(build(intermediate_matches=[match()], **matches_only), student, teachers[place])
    assert torch.equal(total(objective, student, teachers), expected)


def test_a_match_names_a_teacher_by_key_and_its_term_says_so(several, student, teachers, match, matches_only):
    matches = [match(teacher=name) for name in ("a", "b")]
    objective = several(["a", "b"], intermediate_matches=matches, **matches_only)
    terms = objective(student, teachers).terms
    assert list(terms) == ["hidden_plain_mse_0_0_teacher_a", "hidden_plain_mse_0_0_teacher_b"]
    expected = [(student["hidden"][0] - teacher["hidden"][0]).square().mean() for teacher in teachers]
    assert [term.value for term in terms.values()] == expected


def test_2_2_15_a_match_is_masked_by_the_teacher_it_reads(several, student, teachers, match, matches_only, mask):
    teachers[0]["inputs_mask"], teachers[1]["inputs_mask"] = torch.ones(3, 4), mask
    matches = [match(teacher=place, loss="masked_mse") for place in (0, 1)]
    report = several(intermediate_matches=matches, **matches_only)(student, teachers)
    assert [int(term.count) for term in report.terms.values()] == [12, 7]


def test_a_projection_takes_its_width_from_the_teacher_it_reads(
    several, student, teachers, match, matches_only, random
):
    teachers[1]["hidden"] = [random(3, 4, 8)]
    matches = [match(teacher=1, proj="linear")]
    objective = several(intermediate_matches=matches, **matches_only)
    objective.materialize(student=student, teacher=teachers)
    assert next(objective.parameters()).shape == (8, 6)


def test_a_match_must_say_which_of_several_teachers_it_reads(several, match):
    with pytest.raises(ConfigError, match=r"intermediate_matches.0.teacher: must name one of the 2 teachers.*'a', 'b'"):
        several(["a", "b"], intermediate_matches=[match()])


@pytest.mark.parametrize(
    ("teacher", "says"),
    [(2, "there is no teacher 2. There are 2: 'big', 'small'"), ("bik", "no teacher 'bik'. Did you mean 'big'?")],
)
def test_a_match_of_a_teacher_that_is_not_there_is_an_error(several, match, teacher, says):
    with pytest.raises(ConfigError, match=f"intermediate_matches.0.teacher: .*{says}"):
        several(["big", "small"], intermediate_matches=[match(teacher=teacher)])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda t: t[0], "got the outputs of one teacher. There are 2: 0, 1"),
        (lambda t: t * 2, "got the outputs of 4. There are 2"),
        (lambda t: {"a": t[0], "b": t[1]}, "got the outputs of a, b. There are 2: 0, 1"),
    ],
)
def test_outputs_of_other_teachers_are_an_error(several, student, teachers, given, says):
    with pytest.raises(OutputsError, match=f"teacher: {says}"):
        several()(student, given(teachers))


def test_an_adaptor_that_returns_a_tuple_of_tensors_is_no_set_of_teachers(build, student, teachers):
    with pytest.raises(OutputsError, match="teacher: cannot read tuple"):
        build()(student, (teachers[0]["logits"], teachers[1]["logits"]))


@pytest.mark.parametrize("teachers", [0, -1, True, "ab", [], ["a", "a"], ["a", 1]])
def test_teachers_are_counted_or_have_keys_of_their_own(several, teachers):
    with pytest.raises(ConfigError, match="teachers: "):
        several(teachers)


def test_a_combiner_that_is_not_there_is_reported_where_it_is_named(build):
    with pytest.raises(NotInstalledError, match=r"teacher_combiner: 'mean_probs' is not installed. .* kdplug-presets"):
        build(teacher_combiner="mean_probs")


def test_with_one_teacher_or_without_a_kd_loss_no_combiner_is_looked_up(build, match, matches_only, offer):
    offer(lambda unheard_of: None, "teacher_combiners", "mean_logits")
    build()
    Objective(DistillationConfig(intermediate_matches=[match(teacher=1)], **matches_only), 2)


@pytest.fixture
def warm(offer):
    """A combiner and a loss that note the temperature they get, the combiner one that depends on it."""
    seen = []

    def mean_probs(teacher_logits_list, temperature):
        seen.append(("combiner", temperature))
        warmth = torch.as_tensor(temperature).unsqueeze(-1)
        return torch.stack([(one / warmth).softmax(-1) for one in teacher_logits_list]).mean(0).log() * warmth

    def loss(student_logits, teacher_logits, temperature):
        seen.append(("loss", temperature))
        warmth = torch.as_tensor(temperature).unsqueeze(-1)
        return ((student_logits / warmth).softmax(-1) - (teacher_logits / warmth).softmax(-1)).square().sum()

    offer(mean_probs, "teacher_combiners", "mean_probs")
    offer(loss, name="loss")
    return seen


def rising(progress):
    return 2.0 + progress


def of_both(student_logits, teacher_logits, temperature):
    return temperature + (student_logits - teacher_logits).abs().mean(-1)


def shared(seen):
    """The temperature of the loss, which must be the combiner's last."""
    combiner = [value for who, value in seen if who == "combiner"][-1]
    (loss,) = [value for who, value in seen if who == "loss"]
    assert torch.equal(torch.as_tensor(loss), torch.as_tensor(combiner))
    return loss


def test_a_combiner_gets_the_scheduled_temperature_of_the_loss(several, student, teachers, warm, offer):
    offer(rising, "temperature_schedulers", "rising")
    objective = several(kd_loss_type="loss", teacher_combiner="mean_probs", temperature_scheduler="rising")
    value = objective(student, teachers, progress=0.5).total
    assert shared(warm) == 2.5
    assert [who for who, _ in warm] == ["combiner", "loss"]
    mean = torch.stack([(one["logits"] / 2.5).softmax(-1) for one in teachers]).mean(0)
    torch.testing.assert_close(value, ((student["logits"] / 2.5).softmax(-1) - mean).square().sum())


@pytest.mark.parametrize("masked", [False, True])
def test_a_temperature_that_is_scheduled_by_item_is_the_same_for_combiner_and_loss(
    several, student, teachers, mask, warm, offer, masked
):
    offer(of_both, "temperature_schedulers", "of_both")
    objective = several(
        kd_loss_type="loss", teacher_combiner="mean_probs", temperature_scheduler="of_both", temperature=3
    )
    if masked:
        student["logits_mask"] = mask
    value = objective(student, teachers).total
    found = shared(warm)
    kept = mask.bool() if masked else torch.ones(3, 4, dtype=torch.bool)
    assert found.numel() == kept.sum()
    warmth = found.reshape(-1, 1)
    mean = torch.stack([(one["logits"][kept] / warmth).softmax(-1) for one in teachers]).mean(0)
    torch.testing.assert_close(value, ((student["logits"][kept] / warmth).softmax(-1) - mean).square().sum())


def test_a_scheduler_reads_the_shifted_teacher_for_a_combiner_too(several, student, teachers, warm, offer):
    read = []
    offer(lambda teacher_logits: read.append(teacher_logits) or 3.0, "temperature_schedulers", "reads")
    student["labels"] = torch.zeros(3, 4, dtype=torch.long)
    keys = {"teacher_combiner": "mean_probs", "temperature_scheduler": "reads", "probability_shift": True}
    several(kd_loss_type="loss", **keys)(student, teachers)
    assert len(read) == 1
    assert torch.equal(read[0].argmax(-1), torch.zeros(3, 4, dtype=torch.long))
    shared(warm)


def test_a_combiner_without_a_temperature_is_called_once(several, student, teachers, warm, offer):
    calls = []
    offer(lambda teacher_logits_list: calls.append(1) or teacher_logits_list[0], "teacher_combiners", "first")
    offer(of_both, "temperature_schedulers", "of_both")
    several(kd_loss_type="loss", teacher_combiner="first", temperature_scheduler="of_both")(student, teachers)
    assert len(calls) == 1
