"""The total is the weighted sum of the terms, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdplug import ConfigError, DistillationConfig, LossReport, Objective, OutputsError
from kdplug.objective.report import TermValue

MATCHES = [
    {"layer_T": 0, "layer_S": 1, "feature": "hidden", "loss": "plain_mse", "weight": 0.3},
    {"layer_T": [0, 1], "layer_S": [1, 2], "feature": "attention", "loss": "pair_mse", "weight": 2},
]


def test_the_total_is_the_sum_made_by_hand(build, student, teacher):
    objective = build(temperature=2, kd_loss_weight=0.5, hard_label_weight=0.25, intermediate_matches=MATCHES[:1])
    target = (teacher["logits"] / 2).softmax(-1)
    kd = -(target * (student["logits"] / 2).log_softmax(-1)).sum(-1).mean()
    hidden = F.mse_loss(student["hidden"][1], teacher["hidden"][0])
    expected = 0.5 * kd + 0.3 * hidden + 0.25 * student["losses"][0]
    torch.testing.assert_close(objective(student, teacher).total, expected, rtol=1e-13, atol=0)


def test_the_total_is_the_sum_of_the_weighted_terms(build, student, teacher, mask):
    student["inputs_mask"], teacher["logits"] = mask, [teacher["logits"]]
    masked = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "masked_mse", "weight": 0.7}
    report = build(kd_loss_type="ce_sum", kd_loss_weight=3, hard_label_weight=2, intermediate_matches=[masked])(
        student, teacher
    )
    torch.testing.assert_close(report.total, sum(t.value * t.weight for t in report.terms.values()), rtol=1e-13, atol=0)
    torch.testing.assert_close(report.total, sum(t.weighted for t in report.terms.values()), rtol=1e-13, atol=0)


def test_terms_are_named_and_in_order(build, student, teacher):
    student["attention"].append(student["attention"][0])
    objective = build(hard_label_weight=1, intermediate_matches=MATCHES)
    names = ["kd_loss", "hidden_plain_mse_1_0", "attention_pair_mse_1-2_0-1", "hard_label_loss"]
    assert list(objective(student, teacher).terms) == names
    assert [(term.name, term.weight) for term in objective.terms] == list(zip(names, [1, 0.3, 2, 1], strict=True))


def test_a_qualified_loss_is_named_by_its_bare_name(build, match):
    (term,) = build(kd_loss_weight=0, intermediate_matches=[match(loss="local:plain_mse")]).terms
    assert term.name == "hidden_plain_mse_0_0"


def test_two_matches_on_the_same_layers_keep_separate_terms(build, match, student, teacher):
    twice = [match(weight=1), match(weight=2), match(weight=3, name="mine")]
    terms = build(kd_loss_weight=0, intermediate_matches=twice)(student, teacher).terms
    assert {name: term.weight for name, term in terms.items()} == {
        "hidden_plain_mse_0_0": 1,
        "hidden_plain_mse_0_0_2": 2,
        "mine": 3,
    }


def test_a_name_that_the_user_gave_is_never_taken_by_another_term(build, match):
    named = [match(), match(), match(name="hidden_plain_mse_0_0")]
    names = [term.name for term in build(kd_loss_weight=0, intermediate_matches=named).terms]
    assert names == ["hidden_plain_mse_0_0_2", "hidden_plain_mse_0_0_3", "hidden_plain_mse_0_0"]


def test_the_order_of_the_keys_does_not_matter(build, student, teacher):
    objective = build(hard_label_weight=1, intermediate_matches=MATCHES[:1])
    turned = objective(dict(reversed(student.items())), dict(reversed(teacher.items())))
    assert turned.total == objective(student, teacher).total


def test_a_list_of_one_is_as_good_as_a_bare_tensor(build, student, teacher):
    objective = build(hard_label_weight=1)
    listed = {"logits": [student["logits"]], "losses": tuple(student["losses"])}
    assert objective(listed, {"logits": (teacher["logits"],)}).total == objective(student, teacher).total


def test_the_order_of_the_batch_does_not_matter(build, match, student, teacher, mask):
    objective = build(intermediate_matches=[match(loss="masked_mse")])

    def turned(side):
        return {"logits": side["logits"].flip(0), "hidden": [layer.flip(0) for layer in side["hidden"]]}

    student["inputs_mask"] = mask
    expected = objective(student, teacher).total
    actual = objective({**turned(student), "inputs_mask": mask.flip(0)}, turned(teacher)).total
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_bare_logits_are_enough_for_a_kd_loss(build, student, teacher):
    assert build()(student["logits"], teacher["logits"]).total == build()(student, teacher).total


def test_a_term_of_weight_0_is_not_built_and_may_hold_nan(build, match, student, teacher):
    student["losses"], student["hidden"] = [torch.tensor(float("nan"))], None
    objective = build(hard_label_weight=0, intermediate_matches=[match(weight=0)])
    assert [term.name for term in objective.terms] == ["kd_loss"]
    assert objective(student, teacher).total.isfinite()


def test_a_kd_loss_of_weight_0_needs_no_logits(build, student):
    assert build(kd_loss_weight=0, hard_label_weight=1)({"losses": student["losses"]}).total == student["losses"][0]


def test_hard_labels_are_the_sum_of_the_means(build, random):
    losses = [random(3), random(2, 2), random(1).sum()]
    (term,) = build(kd_loss_weight=0, hard_label_weight=0.5)({"losses": losses}).terms.values()
    torch.testing.assert_close(term.weighted, 0.5 * sum(loss.mean() for loss in losses))


def test_hard_labels_without_losses_are_an_error(build, teacher):
    student = {"logits": teacher["logits"], "hidden": teacher["hidden"]}
    with pytest.raises(
        OutputsError, match=r"^hard_label_weight: is 1, but the student returned no losses, only logits, hidden"
    ):
        build(hard_label_weight=1)(student, teacher)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_kd_loss_without_logits_is_an_error_that_says_how_to_go_without(build, student, teacher, side):
    del {"student": student, "teacher": teacher}[side]["logits"]
    with pytest.raises(OutputsError, match=rf"^kd_loss_weight: is 1, but the {side} returned no logits") as caught:
        build()(student, teacher)
    assert "set kd_loss_weight: 0" in str(caught.value)


def test_no_teacher_at_all_is_an_error_where_one_is_needed(build, student):
    with pytest.raises(OutputsError, match="the teacher returned no logits, only nothing"):
        build()(student)


def test_an_adaptors_unknown_key_names_the_side(build, student, teacher):
    with pytest.raises(OutputsError, match=r"^teacher\.hiddens: .*Did you mean 'hidden'\?"):
        build()(student, {"logits": teacher["logits"], "hiddens": []})


def test_nothing_to_train_is_an_error():
    nothing = DistillationConfig(kd_loss_weight=1).model_copy(update={"kd_loss_weight": 0.0})
    with pytest.raises(ConfigError, match="every weight is 0"):
        Objective(nothing)


def test_the_config_stays_what_it_was(build, match, student, teacher):
    objective = build(
        kd_loss_weight_scheduler="growth",
        hard_label_weight=1,
        intermediate_matches=[match(proj=["linear", 6, 6, {"lr": 0.1}])],
    ).double()
    before = objective.config.to_dict()
    for progress in (0.0, 0.5, 1.0):
        objective(student, teacher, progress=progress)
    assert objective.config.to_dict() == before


def test_a_count_is_kept_so_that_batches_can_be_pooled(build, match, student, teacher, mask):
    student["inputs_mask"] = mask
    (term,) = build(kd_loss_weight=0, intermediate_matches=[match(loss="masked_mse")])(student, teacher).terms.values()
    assert term.count == 7
    torch.testing.assert_close(term.total / 7, term.value)


def test_pooled_sums_and_counts_are_those_of_the_whole_batch(build, match, student, teacher, mask):
    objective = build(kd_loss_weight=0, intermediate_matches=[match(loss="masked_mse")])

    def part(rows):
        mine, theirs = ({"hidden": [layer[rows] for layer in side["hidden"]]} for side in (student, teacher))
        (term,) = objective({**mine, "inputs_mask": mask[rows]}, theirs).terms.values()
        return term

    whole, pieces = part(slice(None)), [part(slice(0, 1)), part(slice(1, 3))]
    pooled = sum(piece.total for piece in pieces) / sum(piece.count for piece in pieces)
    torch.testing.assert_close(pooled, whole.value, rtol=1e-13, atol=0)


def test_a_scalar_loss_has_count_1(build, student, teacher):
    assert build()(student, teacher).terms["kd_loss"].count == 1


def test_the_report_reads_well():
    term = TermValue(torch.tensor(6.0), 4, 0.5)
    assert repr(LossReport(torch.tensor(0.75), {"kd_loss": term})) == "LossReport(total=0.75, kd_loss=0.5*1.5)"


def test_a_detached_report_has_the_same_values_and_no_graph(build, student, teacher):
    report = build(hard_label_weight=1)(student, teacher)
    kept = report.detach()
    assert not kept.total.requires_grad
    assert not any(term.value.requires_grad for term in kept.terms.values())
    assert repr(kept) == repr(report)
