"""What a plan warns of, and what it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from plan_scene import Net
from torch import nn
from torch.nn import functional

import kdplug

HIDDEN = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "cos", "proj": ["linear", 4, 6]}
BLIND = {**HIDDEN, "loss": "local:blind"}
ATTENTION = {"layer_T": 0, "layer_S": 0, "feature": "attention"}


@pytest.fixture
def blind(scene):
    """A match loss that takes no mask."""
    kdplug.losses.register("blind")(
        lambda student_features, teacher_features: (student_features - teacher_features).square().mean()
    )


def _checks(plan):
    return [warning.check for warning in plan.warnings]


def _scores(batch, outputs):
    return {"attention": [outputs["scores"]]}


def _probabilities(batch, outputs):
    return {"attention": [outputs["scores"].softmax(-1)]}


def _masks(key, *columns):
    """An adaptor's mask that leaves the given positions out."""

    def change(batch, outputs):
        mask = torch.ones_like(batch["ids"])
        mask[:, list(columns)] = 0
        return {key: mask}

    return change


def _both(change):
    return {"teacher": change, "student": change}


def test_a_term_without_gradient_for_the_student_is_dead(scene):
    plan = scene(
        intermediate_matches=[HIDDEN],
        student=lambda batch, outputs: {"hidden": [outputs["hidden"].detach()]},
    )
    assert _checks(plan) == ["dead_term", "said_by_the_run"]
    assert "hidden_cos_0_0 gives the student no gradient" in plan.warnings[0].message


def test_a_term_that_starts_at_weight_0_is_not_dead(scene):
    assert scene(hard_label_weight=1, hard_label_weight_scheduler="linear_growth").warnings == []


def test_a_term_whose_weight_stays_0_is_dead(scene):
    kdplug.weight_schedulers.register("never")(lambda progress: 0.0)
    plan = scene(hard_label_weight=1, hard_label_weight_scheduler="never")
    assert [warning.message for warning in plan.warnings] == [
        "hard_label_loss has no effect: its schedule keeps its weight at 0 from start to end"
    ]


def test_a_term_that_counts_nothing_is_dead(scene):
    plan = scene(hard_label_weight=1, **_both(_masks("logits_mask", 0, 1, 2, 3, 4)), t2=True)
    assert _checks(plan) == ["dead_term", "said_by_the_run"]
    assert "all items were masked or had an ignored label" in plan.warnings[0].message


def test_a_term_that_counts_something_in_a_later_batch_is_not_dead(scene):
    seen = []

    def change(batch, outputs):
        seen.append(len(seen))
        return {"losses": outputs["logits"].mean() * (0.0 if len(seen) < 2 else 1.0)}

    assert scene(hard_label_weight=1, student=change).warnings == []


def test_a_loss_that_is_no_number_is_reported(scene):
    plan = scene(hard_label_weight=1, student=lambda batch, outputs: {"losses": outputs["logits"].sum() * float("nan")})
    assert _checks(plan) == ["not_finite"]


def test_an_inputs_mask_that_no_loss_takes_is_reported(scene):
    kdplug.losses.register("blind")(lambda student_features, teacher_features: student_features.square().mean())
    plan = scene(intermediate_matches=[{**HIDDEN, "loss": "blind"}], **_both(_masks("inputs_mask")))
    assert _checks(plan) == ["unused_mask"]
    assert "local:blind takes a mask" in plan.warnings[0].message


def test_an_inputs_mask_that_a_loss_takes_is_used(scene):
    assert scene(intermediate_matches=[HIDDEN], **_both(_masks("inputs_mask"))).warnings == []


def test_an_inputs_mask_where_nothing_is_matched_is_no_mistake(scene):
    assert scene(**_both(_masks("inputs_mask"))).warnings == []


def test_padding_that_the_kd_loss_counts_is_reported(scene):
    plan = scene(intermediate_matches=[HIDDEN], **_both(_masks("inputs_mask", 4)))
    assert _checks(plan) == ["padding_counts"]


def _own_losses(*columns, as_sum=False):
    """A ``logits_mask``, and losses of positions of their own choice."""

    def change(batch, outputs):
        loss = functional.cross_entropy(
            outputs["logits"][:, list(columns)].flatten(0, 1), batch["ids"][:, list(columns)].flatten()
        )
        losses = kdplug.LossSum(loss * len(columns), len(columns)) if as_sum else loss
        return {**_masks("logits_mask", 3, 4)(batch, outputs), "losses": losses}

    return change


def test_a_logits_mask_without_kd_loss_is_reported_where_matches_lack_theirs(scene):
    plan = scene(kd_loss_weight=0, intermediate_matches=[HIDDEN], **_both(_masks("logits_mask")))
    assert _checks(plan) == ["unused_mask"]


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(("columns", "checks"), [((0, 1, 2), []), ((0, 1, 2, 3), ["unused_mask"])])
@pytest.mark.parametrize("as_sum", [False, True])
def test_a_logits_mask_without_kd_loss_is_reported_where_the_own_losses_count_more(scene, columns, checks, as_sum):
    sides = _both(_own_losses(*columns, as_sum=as_sum))
    plan = scene(kd_loss_weight=0, hard_label_weight=1, intermediate_matches=[BLIND], **sides)
    assert _checks(plan) == checks


@pytest.mark.usefixtures("blind")
def test_a_logits_mask_without_kd_loss_is_reported_where_the_own_losses_come_from_elsewhere(scene):
    def change(batch, outputs):
        return {**_masks("logits_mask", 4)(batch, outputs), "losses": outputs["hidden"].square().mean()}

    plan = scene(kd_loss_weight=0, hard_label_weight=1, intermediate_matches=[BLIND], student=change)
    assert _checks(plan) == ["unused_mask"]


def test_a_logits_mask_where_nothing_reads_logits_is_no_mistake(scene):
    both = _both(
        lambda batch, outputs: {**_masks("logits_mask", 4)(batch, outputs), **_masks("inputs_mask", 4)(batch, outputs)}
    )
    assert scene(kd_loss_weight=0, intermediate_matches=[HIDDEN], **both).warnings == []


def test_a_logits_mask_next_to_logits_of_two_axes_is_reported(scene):
    def pooled(batch, outputs):
        return {"logits": outputs["logits"].mean(1), **_masks("logits_mask", 1)(batch, outputs)}

    plan = scene(**_both(pooled))
    assert _checks(plan) == ["said_by_the_run"]
    assert "logits_mask [8, 5] has no effect" in plan.warnings[0].message


@pytest.mark.parametrize(
    ("change", "inputs", "checks"),
    [
        (_probabilities, "scores", ["doubled_softmax"] * 2),
        (_probabilities, "probs", []),
        (_scores, "scores", []),
        (_scores, "probs", ["missing_softmax"] * 2),
    ],
)
def test_attentions_have_to_be_what_the_loss_takes(scene, change, inputs, checks):
    loss = {"name": "attention_ce", "inputs": inputs}
    assert _checks(scene(intermediate_matches=[{**ATTENTION, "loss": loss}], **_both(change))) == checks


def test_the_default_of_an_attention_loss_is_looked_at_too(scene):
    plan = scene(intermediate_matches=[{**ATTENTION, "loss": "attention_ce_mean"}], **_both(_probabilities))
    assert plan.warnings[0].field == "distillation.intermediate_matches.0.loss"
    assert "Set inputs: probs" in plan.warnings[0].message


def test_logits_that_are_probabilities_are_reported(scene):
    plan = scene(teacher=lambda batch, outputs: {"logits": outputs["logits"].softmax(-1)})
    assert _checks(plan) == ["doubled_softmax"]


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({"t2": False, "hard_label_weight": 1}, ["temperature"]),
        ({"t2": True, "hard_label_weight": 1}, []),
        ({"t2": False, "hard_label_weight": 1, "temperature": 1}, []),
        ({"t2": False}, []),
    ],
)
def test_a_temperature_without_its_square_next_to_labels_is_reported(scene, changes, checks):
    assert _checks(scene(**changes)) == checks


def test_the_gradient_does_fall_as_the_warning_says(scene):
    """At a high temperature, where the softmax is nearly linear, doubling it leaves a quarter of the gradient."""
    once, twice = (scene(t2=False, temperature=value).terms[0].gradient_norm for value in (50, 100))
    assert once / twice == pytest.approx(4, rel=0.05)


def test_labels_that_are_the_inputs_are_reported_where_a_loss_takes_them(scene):
    plan = scene(probability_shift=True, student=lambda batch, outputs: {"labels": batch["ids"]})
    assert _checks(plan) == ["unshifted_labels"]
    assert "the inputs 'ids'" in plan.warnings[0].message


def test_labels_that_nobody_takes_may_be_the_inputs(scene):
    assert scene(student=lambda batch, outputs: {"labels": batch["ids"]}).warnings == []


def test_labels_that_are_shifted_are_right(scene):
    plan = scene(probability_shift=True, student=lambda batch, outputs: {"labels": batch["ids"].roll(-1, 1)})
    assert plan.warnings == []


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"probability_shift": True}, ["probability_shift"]),
        ({"temperature_scheduler": ["flsw", 1, 1]}, ["temperature_scheduler"]),
        ({"temperature": 2}, ["temperature"]),
    ],
)
def test_a_setting_of_a_kd_loss_that_is_off_is_reported(scene, changes, fields):
    plan = scene(kd_loss_weight=0, intermediate_matches=[HIDDEN], **changes)
    assert [warning.field for warning in plan.warnings] == [f"distillation.{field}" for field in fields]
    assert _checks(plan) == ["no_effect"]


def test_a_temperature_that_a_match_takes_is_used_without_a_kd_loss(scene):
    @kdplug.losses.register("warm")
    def warm(student_features, teacher_features, temperature):
        return (student_features - teacher_features).square().mean() * temperature

    @kdplug.temperature_schedulers.register("warming")
    def warming(temperature, progress):
        return temperature + progress

    match = {**HIDDEN, "loss": "warm"}
    plan = scene(kd_loss_weight=0, intermediate_matches=[match], temperature=2, temperature_scheduler="warming")
    assert plan.warnings == []


def _maps(width):
    """An adaptor's feature maps ``[B, channels, 2, width]``."""
    return lambda batch, outputs: {"hidden": [outputs["hidden"][:, :2, None, :width].expand(-1, -1, 2, -1)]}


def test_a_projection_of_the_last_axis_of_feature_maps_is_warned_of(scene):
    plan = scene(
        kd_loss_weight=0,
        intermediate_matches=[HIDDEN, {**HIDDEN, "loss": "hidden_mse", "proj": ["linear", "auto", "auto"]}],
        student=_maps(4),
        teacher=_maps(6),
    )
    assert _checks(plan) == ["projected_axis", "projected_axis"]
    assert plan.warnings[1].field == "distillation.intermediate_matches.1.proj"
    expected = (
        "proj maps the last axis of a feature of shape [8, 2, 2, 4]: for maps [batch, channels, height, width] use a"
    )
    assert expected in plan.warnings[1].message


def test_a_projection_of_channels_of_hidden_states_or_of_attention_is_not_warned_of(scene):
    class Channels(nn.Conv2d):
        axis = 1

        def __init__(self, in_dim, out_dim):
            super().__init__(in_dim, out_dim, 1)

    kdplug.projections.register("channels")(Channels)
    on_maps = {**HIDDEN, "loss": "hidden_mse", "proj": ["channels", "auto", "auto"]}
    assert scene(kd_loss_weight=0, intermediate_matches=[on_maps], student=_maps(4), teacher=_maps(4)).warnings == []
    assert scene(kd_loss_weight=0, intermediate_matches=[HIDDEN]).warnings == []
    given = {**ATTENTION, "loss": "attention_mse", "proj": ["linear", "auto", "auto"]}
    assert "projected_axis" not in _checks(scene(intermediate_matches=[given], **_both(_scores)))


def test_a_match_of_weight_0_is_reported(scene):
    plan = scene(intermediate_matches=[{**HIDDEN, "weight": 0}])
    assert [warning.field for warning in plan.warnings] == ["distillation.intermediate_matches.0"]


def test_a_teacher_that_no_term_reads_is_reported(scene):
    plan = scene(kd_loss_weight=0, hard_label_weight=1)
    assert "the student learns nothing from the teacher" in plan.warnings[0].message


def test_checkpoints_that_will_not_be_written_are_reported_as_the_run_reports_them(scene):
    assert _checks(scene(training={"ckpt_steps": 5})) == ["said_by_the_run"]


def test_a_student_with_more_parameters_than_its_teacher_is_warned_of(scene, monkeypatch):
    monkeypatch.setattr("plan_scene.Scene.build_student", lambda self: Net(8))
    found = [one for one in scene().warnings if one.check == "large_student"]
    assert [one.field for one in found] == ["task"]
    assert "more than its teacher" in found[0].message


def test_a_student_with_more_layers_than_its_teacher_is_warned_of(scene, monkeypatch):
    for side, width, layers in (("teacher", 6, 2), ("student", 4, 3)):
        net = Net(width)
        net.config = SimpleNamespace(num_hidden_layers=layers)
        monkeypatch.setattr(f"plan_scene.Scene.build_{side}", lambda self, net=net: net)
    (found,) = (one for one in scene().warnings if one.check == "large_student")
    assert found.message == "the student has 3 layers, more than its teacher, which has 2"


@pytest.mark.parametrize(("temperature", "classes", "is_warned_of"), [(4, 1001, 1), (2, 1001, 0), (4, 1000, 0)])
def test_a_high_temperature_over_many_classes_is_warned_of(scene, temperature, classes, is_warned_of):
    def wide(batch, outputs):
        return {"logits": functional.pad(outputs["logits"], (0, classes - outputs["logits"].shape[-1]))}

    checks = _checks(scene(temperature=temperature, teacher=wide, student=wide))
    assert checks.count("high_temperature") == is_warned_of
