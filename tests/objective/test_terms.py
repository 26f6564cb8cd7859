"""Terms: several losses on logits, each with its own temperature, weight and heads, and losses on logits and features."""

from __future__ import annotations

import pytest
import torch

from kdplug import (
    ConfigError,
    DistillationConfig,
    FactoredLogits,
    KdplugError,
    LossSum,
    Objective,
    OutputsError,
    ShapeError,
    SignatureError,
    any_layers,
    coarsens,
)


def total(objective, student, teacher, **keys):
    return objective(student=student, teacher=teacher, **keys).total


def test_two_losses_on_logits_are_summed_each_at_its_own_temperature(of, build, student, teacher):
    found = of({"loss": "ce", "weight": 0.5}, {"loss": "ce", "weight": 2, "temperature": 1}, temperature=4)
    parts = [build(kd_loss_type="ce", temperature=one) for one in (4, 1)]
    first, second = (total(part, student, teacher) for part in parts)
    assert total(found, student, teacher) == 0.5 * first + 2 * second


def test_each_term_has_its_own_weight_schedule(of, build, student, teacher):
    found = of({"loss": "ce", "weight_scheduler": "growth"}, {"loss": "ce", "weight": 3})
    one = total(build(kd_loss_type="ce"), student, teacher)
    torch.testing.assert_close(total(found, student, teacher, progress=0.25), 3.25 * one)


def test_each_term_has_its_own_temperature_scheduler(of, offer, build, student, teacher):
    offer(lambda temperature, progress: temperature * (1 + progress), "temperature_schedulers", "warm")
    found = of(
        {"loss": "ce"},
        {"loss": "ce", "temperature_scheduler": "none"},
        {"loss": "ce", "temperature": 1},
        temperature=2,
        temperature_scheduler="warm",
    )
    values = found(student, teacher, progress=0.5).terms
    expected = [total(build(kd_loss_type="ce", temperature=one), student, teacher) for one in (3, 2, 1.5)]
    assert [values[name].value for name in ("ce", "ce_2", "ce_3")] == expected


def test_the_terms_that_old_keys_mean_give_the_same_loss_and_gradient(build, match, student, teacher, mask):
    student["inputs_mask"] = student["logits_mask"] = mask
    objective = build(
        temperature=3,
        kd_loss_type="ce",
        kd_loss_weight=2,
        kd_loss_weight_scheduler="growth",
        hard_label_weight=1,
        intermediate_matches=[
            match(loss="masked_mse", weight=0.5),
            match(layer_S=[0, 1], layer_T=[1, 2], loss="pair_mse"),
        ],
    )
    written = Objective(objective.config.resolved())
    assert [term.name for term in written.terms] == [term.name for term in objective.terms]
    found = [one(student, teacher, progress=0.5).total for one in (objective, written)]
    assert found[0] == found[1]
    gradients = [torch.autograd.grad(one, [student["logits"], student["hidden"][0]]) for one in found]
    assert all(map(torch.equal, *gradients))
    assert list(objective.state_dict()) == list(written.state_dict())


# Heads


@pytest.fixture
def heads(random):
    """Three heads of the student, two of the teacher."""
    student = {"logits": [random(3, 5, requires_grad=True) for _ in range(3)]}
    return student, {"logits": [random(3, 5) for _ in range(2)]}


def test_one_head_is_compared_with_one_of_the_teacher(of, build, heads):
    student, teacher = heads
    found = of({"loss": "ce", "head_S": 2, "head_T": 0}, {"loss": "ce", "head_S": 0, "head_T": 1, "weight": 3})
    kd = build(kd_loss_type="ce")
    expected = total(kd, {"logits": student["logits"][2]}, {"logits": teacher["logits"][0]})
    expected = expected + 3 * total(kd, {"logits": student["logits"][0]}, {"logits": teacher["logits"][1]})
    value = total(found, student, teacher)
    assert value == expected
    value.backward()
    assert [one.grad is not None for one in student["logits"]] == [True, False, True]


def test_masks_and_labels_follow_their_head(of, offer, random):
    seen = []

    def spy(student_logits, teacher_logits, labels):
        seen.append((student_logits.detach(), teacher_logits, labels))
        return (student_logits - teacher_logits).square().mean()

    student = {
        "logits": [random(4, 3, requires_grad=True) for _ in range(2)],
        "logits_mask": [torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 1, 1])],
        "labels": [torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, 0])],
    }
    teacher = {"logits": [random(4, 3)], "logits_mask": [torch.tensor([0, 1, 1, 1])]}
    of({"loss": offer(spy), "head_S": 1})(student, teacher)
    (ours, theirs, labels), rows = seen[0], [1, 2, 3]
    assert torch.equal(ours, student["logits"][1][rows])
    assert torch.equal(theirs, teacher["logits"][0][rows])
    assert labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            {"head_S": 3, "head_T": 0},
            r"^terms\.0\.head_S: there is no head 3: the student returned logits of 3 heads \(0 to 2\)",
        ),
        ({"head_S": 0, "head_T": 2}, r"^terms\.0\.head_T: there is no head 2: the teacher returned logits of 2 heads"),
        ({"head_S": 0}, r"^terms\.0\.head_T: must select a head, as head_S does: the teacher returned logits of 2"),
        (
            {},
            r"^terms\.0\.loss: the numbers of heads differ: the student returned logits of 3, the teacher of 2.*head_S and head_T",
        ),
    ],
)
def test_a_head_that_does_not_exist_is_named_with_its_path(of, heads, term, message):
    with pytest.raises(OutputsError, match=message):
        of({"loss": "ce", **term})(*heads)


# Features and logits


def test_a_loss_on_features_gets_the_logits_too(of, offer, student, teacher):
    def both(student_features, teacher_features, student_logits, teacher_logits, temperature) -> LossSum:
        error = (student_features - teacher_features).square().mean(-1)
        weight = (student_logits / temperature - teacher_logits / temperature).square().mean(-1)
        return LossSum((weight * error).sum(), error.numel())

    found = of({"loss": offer(both), "feature": "hidden", "layer_S": 1, "layer_T": 2}, temperature=2)
    value = total(found, student, teacher)
    error = (student["hidden"][1] - teacher["hidden"][2]).square().mean(-1)
    torch.testing.assert_close(
        value, (error * (student["logits"] / 2 - teacher["logits"] / 2).square().mean(-1)).mean()
    )
    value.backward()
    assert student["hidden"][1].grad is not None
    assert student["logits"].grad is not None


def test_a_match_gets_logits_as_a_term_with_layers_does(build, offer, match, student, teacher):
    name = offer(lambda student_features, student_logits: student_features.mean() * student_logits.mean())
    value = total(build(kd_loss_weight=0, intermediate_matches=[match(loss=name)]), student, teacher)
    assert value == student["hidden"][0].mean() * student["logits"].mean()


def test_the_teachers_logits_carry_no_gradient(of, offer, student, teacher, random):
    teacher["logits"] = random(3, 4, 5, requires_grad=True)
    name = offer(lambda student_features, teacher_logits: student_features.mean() * teacher_logits.mean())
    total(of({"loss": name, "feature": "hidden", "layer_S": 0, "layer_T": 0}), student, teacher).backward()
    assert teacher["logits"].grad is None


def test_a_loss_on_features_and_logits_selects_its_head(of, offer, student, teacher, random):
    student["logits"], teacher["logits"] = [random(3, 5), random(3, 5)], [random(3, 5), random(3, 5)]
    name = offer(lambda student_features, student_logits, teacher_logits: (student_logits - teacher_logits).sum())
    term = {"loss": name, "feature": "hidden", "layer_S": 0, "layer_T": 0}
    assert total(of(term), student, teacher) == (student["logits"][0] - teacher["logits"][0]).sum()
    chosen = of({**term, "head_S": 1, "head_T": 0})
    assert total(chosen, student, teacher) == (student["logits"][1] - teacher["logits"][0]).sum()
    with pytest.raises(OutputsError, match=r"^terms\.0\.head_T: there is no head 2"):
        of({**term, "head_T": 2})(student, teacher)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_missing_logits_are_an_error_of_the_term(of, offer, student, teacher, side):
    name = offer(lambda student_features, student_logits, teacher_logits: student_features.mean())
    del {"student": student, "teacher": teacher}[side]["logits"]
    with pytest.raises(OutputsError, match=rf"^terms\.0\.loss: local:offered requests {side}_logits, but the {side}"):
        of({"loss": name, "feature": "hidden", "layer_S": 0, "layer_T": 0})(student, teacher)


def test_a_scheduler_that_reads_logits_schedules_a_loss_that_has_them(of, offer, student, teacher):
    offer(lambda student_logits: student_logits[..., 0].abs() + 1, "temperature_schedulers", "first")
    with_logits = offer(lambda student_features, student_logits, temperature: temperature.sum(), name="with_logits")
    without = offer(lambda student_features, temperature: student_features.mean(), name="without")
    term = {"feature": "hidden", "layer_S": 0, "layer_T": 0}
    found = of({"loss": with_logits, **term}, temperature_scheduler="first")
    assert total(found, student, teacher) == (student["logits"][..., 0].abs() + 1).sum()
    with pytest.raises(ConfigError, match=r"^terms\.0\.temperature_scheduler: local:first computes temperatures from"):
        of({"loss": without, **term, "temperature_scheduler": "first"})


# Teachers


def test_a_term_on_logits_may_name_one_of_several_teachers(of, offer, build, student, teacher, random):
    offer(lambda teacher_logits_list: sum(teacher_logits_list) / 2, "teacher_combiners", "mean_logits")
    teachers = [teacher, {"logits": random(3, 4, 5)}]
    found = of({"loss": "ce", "teacher": 1}, {"loss": "ce"}, {"loss": "ce", "teacher": 0}, teachers=2)
    kd = build(kd_loss_type="ce")
    mean = {"logits": (teachers[0]["logits"] + teachers[1]["logits"]) / 2}
    values = found(student, teachers).terms
    expected = [total(kd, student, one) for one in (teachers[1], mean, teacher)]
    assert [values[name].value for name in ("ce_teacher_1", "ce", "ce_teacher_0")] == expected


def test_a_teacher_that_does_not_exist_is_named_with_its_path(of):
    with pytest.raises(ConfigError, match=r"^terms\.0\.teacher: there is no teacher 2"):
        of({"loss": "ce", "teacher": 2}, teachers=2)


def test_no_teacher_may_be_called_student(of):
    with pytest.raises(ConfigError, match=r"^teachers: 'student' cannot be the key of a teacher"):
        of({"loss": "ce"}, teachers=["student", "other"])


# Errors


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": "plain_mse"}, r"^terms\.1\.loss: .*'student_features', which is not available in a kd loss"),
        ({"loss": ["ce", 1]}, r"^terms\.1\.loss: "),
        ({"loss": "ce", "weight_scheduler": ["growth", 1]}, r"^terms\.1\.weight_scheduler: "),
    ],
)
def test_what_cannot_be_built_is_named_by_its_path(of, term, message):
    with pytest.raises(KdplugError, match=message):
        of({"loss": "ce"}, term)


def test_errors_of_a_loss_name_its_term(of, offer, student, teacher):
    def refuses(student_logits, teacher_logits):
        raise OutputsError("is wrong", field="student.logits")

    with pytest.raises(OutputsError, match=r"^terms\.1\.loss\.student\.logits: is wrong"):
        of({"loss": "ce"}, {"loss": offer(refuses)})(student, teacher)


def test_missing_logits_name_the_weight_of_the_term(of, student, teacher):
    del teacher["logits"]
    with pytest.raises(OutputsError, match=r"^terms\.0\.weight: is 2, but the teacher returned no logits"):
        of({"loss": "ce", "weight": 2})(student, teacher)


def test_a_weight_scheduler_with_state_is_refused(build, offer):
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, progress):
            return self.factor

    offer(Learned, "weight_schedulers", "learned")
    with pytest.raises(
        SignatureError, match=r"^kd_loss_weight_scheduler: local:learned is a module with parameters or"
    ):
        build(kd_loss_type="ce", kd_loss_weight_scheduler="learned")


# Lists of different lengths


def nearest(student_features, teacher_features):
    return sum(min((one - two).square().mean() for two in teacher_features) for one in student_features)


def test_a_loss_that_declares_any_layers_takes_lists_of_different_lengths(of, offer, student, teacher):
    term = {"feature": "hidden", "layer_S": [0, 1], "layer_T": [0, 1, 2]}
    value = total(of({"loss": offer(any_layers(nearest)), **term}), student, teacher)
    assert value == nearest(student["hidden"][:2], teacher["hidden"][:3])


def test_lists_of_different_lengths_need_the_declaration(of, offer):
    name = offer(lambda student_features, teacher_features: None)
    message = r"^terms\.0: the number of layers in layer_S, 2 \(0, 1\), differs .* any_layers, which .* does not$"
    with pytest.raises(ConfigError, match=message):
        of({"loss": name, "feature": "hidden", "layer_S": [0, 1], "layer_T": [0, 1, 2]})


# Labels that are probabilities


def mixed(student_logits, teacher_logits, labels) -> LossSum:
    found = -(labels * student_logits.log_softmax(-1)).sum(-1)
    return LossSum(found.sum(), found.numel())


def test_labels_may_be_probabilities_selected_like_the_logits(of, offer, student, teacher, random, mask):
    student["labels"], student["logits_mask"] = random(3, 4, 5).softmax(-1), mask
    rows = mask.bool()
    expected = -(student["labels"][rows] * student["logits"][rows].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(total(of({"loss": offer(mixed)}), student, teacher), expected)


def test_probabilities_follow_the_chunks_of_factored_logits(of, offer, random):
    hidden, weight = random(3, 4, 6), random(5, 6)
    teacher, labels = {"logits": random(3, 4, 5)}, random(3, 4, 5).softmax(-1)
    dense = {"logits": hidden @ weight.T, "labels": labels}
    factored = {"logits": FactoredLogits(hidden, weight), "labels": labels}
    found = total(of({"loss": offer(mixed)}, logit_chunk=5), factored, teacher)
    torch.testing.assert_close(found, total(of({"loss": "offered"}), dense, teacher))


def test_probabilities_of_another_number_of_classes_are_an_error(of, offer, student, teacher, random):
    student["labels"] = random(3, 4, 4).softmax(-1)
    with pytest.raises(
        ShapeError, match=r"^terms\.0\.student\.labels: \[3, 4, 4\] do not match logits \[3, 4, 5\]: floating"
    ):
        of({"loss": offer(mixed)})(student, teacher)


def test_probability_shift_needs_class_indices(of, student, teacher, random):
    student["labels"] = random(3, 4, 5).softmax(-1)
    with pytest.raises(OutputsError, match=r"student\.labels: must contain integer class indices"):
        of({"loss": "ce"}, probability_shift=True)(student, teacher)


def squared(student_logits, teacher_logits):
    return (student_logits - teacher_logits).square().mean()


@pytest.mark.parametrize(("key", "value"), [("temperature", 3), ("temperature_scheduler", "local:warm")])
def test_a_temperature_of_a_term_that_a_loss_on_logits_does_not_use_is_an_error(of, offer, key, value):
    offer(lambda temperature, progress: temperature * (1 + progress), "temperature_schedulers", "warm")
    name = offer(squared)
    with pytest.raises(
        ConfigError, match=rf"^terms\.1\.{key}: has no effect: local:offered does not request temperature"
    ):
        of({"loss": "ce"}, {"loss": name, key: value})


def test_the_temperature_of_the_distillation_may_be_one_that_no_loss_uses(of, build, offer, student, teacher):
    objective = build(kd_loss_type=offer(squared), temperature=3)
    assert objective(student, teacher).total == squared(student["logits"], teacher["logits"])
    assert of({"loss": "local:offered"}, temperature=3)(student, teacher).total == objective(student, teacher).total


def test_a_term_may_set_the_temperature_of_a_teacher_combiner_or_of_the_tail_of_sparse_logits(offer, of):
    offer(lambda teacher_logits_list, temperature: teacher_logits_list[0], "teacher_combiners", "first")
    term = {"loss": offer(squared), "temperature": 3}
    Objective(DistillationConfig(terms=[term], teacher_combiner="local:first"), ("a", "b"))
    of({**term, "loss": offer(coarsens(squared), name="coarse")})


def test_a_resolved_config_sets_no_temperature_that_the_loss_does_not_use(offer):
    config = DistillationConfig(terms=[{"loss": offer(squared)}, {"loss": "ce"}], temperature=3).resolved()
    assert [term.temperature for term in config.terms] == [None, 3]
    Objective(DistillationConfig.from_dict(config.to_dict()))
    assert config.resolved() == config


HIDDEN = {"loss": "plain_mse", "feature": "hidden", "layer_S": 0, "layer_T": 0}


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("temperature", 3, "temperature"),
        ("temperature_scheduler", "local:warm", "temperature"),
        ("head_S", 0, "logits"),
        ("head_T", 0, "logits"),
    ],
)
def test_a_key_that_a_loss_on_features_does_not_use_is_an_error(of, offer, key, value, name):
    offer(lambda temperature, progress: temperature * (1 + progress), "temperature_schedulers", "warm")
    with pytest.raises(ConfigError, match=rf"^terms\.1\.{key}: has no effect: .* does not request {name}"):
        of({"loss": "ce"}, {**HIDDEN, key: value})
