"""What a plan says of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plan_scene import BATCH, LENGTH, Scene

import kdplug
from kdplug import Recipe
from kdplug.cli.plan import plan_lines
from kdplug.errors import ConfigError, OutputsError, RunError, ShapeError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

MATCH = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", "auto", "auto"]}
PATHS = {"layer_T": "inner", "layer_S": "inner", "loss": "hidden_mse", "proj": ["linear", 4, 6]}
ATTENTION = {"layer_T": 0, "layer_S": 0, "feature": "attention", "loss": "attention_mse"}


def _bytes(plan, name):
    return next(item.bytes for item in plan.memory if item.name.startswith(name))


def test_nothing_is_warned_of_where_nothing_is_wrong(scene):
    assert scene(intermediate_matches=[MATCH]).warnings == []


def test_a_plan_writes_nothing(scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene(intermediate_matches=[MATCH])
    assert list(tmp_path.iterdir()) == []


def test_the_terms_are_listed_with_their_weights_over_the_run(scene):
    plan = scene(hard_label_weight=2, kd_loss_weight_scheduler="linear_decay")
    assert [term.name for term in plan.terms] == ["kd_loss", "hard_label_loss"]
    assert [term.weights for term in plan.terms] == [(1.0, 0.5, 0.0), (2.0, 2.0, 2.0)]


def test_shares_are_listed_and_their_measurement_is_priced(scene):
    terms = [{"loss": "ce", "weight": {"share": 0.4}, "weight_scheduler": "linear_decay"}, {"loss": "mse", "weight": 2}]
    plan = scene(terms=terms, balancer={"name": "share", "calibrate_steps": 2})
    assert [(term.share, term.weights[0], term.weights[2]) for term in plan.terms] == [(0.4, 1, 0), (None, 2, 2)]
    assert (plan.balancer.name, plan.balancer.calibrate_steps) == ("kdplug-presets:share", 2)
    assert plan.balancer.cost == pytest.approx(2 * (1 + 2 * 2) / 3)
    shown = plan.to_data()
    assert shown["balancer"]["calibrate_steps"] == 2
    assert shown["terms"][0]["share"] == 0.4
    lines = "\n".join(str(line) for line in plan_lines(plan) if not hasattr(line, "columns"))
    assert (
        "kdplug-presets:share computes the weights from the first 2 steps, before training: costs about 3.33" in lines
    )


def test_a_balancer_that_needs_gradients_is_priced_for_every_step(scene):
    terms = [{"loss": "ce"}, {"loss": "mse"}]
    dear, cheap = (scene(terms=terms, balancer=name) for name in ("gradnorm", "dwa"))
    assert dear.balancer.cost == pytest.approx(dear.steps["distilled"] * 4 / 3)
    assert cheap.balancer.cost == 0
    assert scene(terms=terms).balancer is None
    assert [term.gradient_norm for term in dear.terms] == [term.gradient_norm for term in scene(terms=terms).terms]


def test_the_config_has_every_setting_and_qualified_names(scene):
    (term,) = scene(kd_loss_type="mse").config.terms
    assert term.loss.name == "kdplug-presets:mse"


@pytest.mark.parametrize(("match", "layer"), [(MATCH, "0"), (PATHS, "inner")])
def test_a_match_is_shown_with_layers_shapes_and_projection(scene, match, layer):
    (found,) = scene(intermediate_matches=[match]).matches
    assert found.student == [(layer, [BATCH, LENGTH, 4])]
    assert found.teacher == [(layer, [BATCH, LENGTH, 6])]
    proj = found.projection
    assert (proj.name, proj.in_dim, proj.out_dim, proj.parameters) == ("kdplug-presets:linear", 4, 6, 4 * 6 + 6)


def test_a_layer_map_is_written_out(scene):
    layer_map = {"name": "uniform", "embeddings": False, **{key: MATCH[key] for key in ("feature", "loss", "proj")}}
    plan = scene(layer_map=layer_map)
    assert [match.term for match in plan.matches] == ["hidden_hidden_mse_0_0"]
    assert plan.config.layer_map == ()


def test_parameters_are_those_of_the_models(scene):
    plan = scene(intermediate_matches=[MATCH])
    assert plan.parameters["projections"] == 30
    assert plan.parameters["teacher"] > plan.parameters["student"]


def test_gradients_take_as_much_as_what_is_learned_and_adam_twice_that(scene):
    plan = scene(intermediate_matches=[MATCH])
    learned = _bytes(plan, "student, weights") + _bytes(plan, "projections")
    assert _bytes(plan, "gradients") == learned
    assert _bytes(plan, "optimizer state") == pytest.approx(2 * learned, rel=0.1)


def test_weights_take_four_bytes_each(scene):
    plan = scene()
    assert _bytes(plan, "teacher, weights") == 4 * plan.parameters["teacher"]


def test_an_optimizer_without_state_takes_none(scene):
    assert _bytes(scene(training={"optimizer": "SGD"}), "optimizer state") == 0


def test_activations_grow_with_the_batch(scene):
    small, large = scene(training={"batch_size": 2}), scene(training={"batch_size": 16})
    assert _bytes(large, "activations") > 4 * _bytes(small, "activations")


def test_the_steps_are_those_that_the_trainings_take(scene):
    assert scene(training={"num_epochs": 2}).steps == {"teacher": 10, "no_teacher": 6, "distilled": 6}


def test_the_steps_of_a_plan_are_those_of_the_run(signs):
    recipe = signs("training.num_epochs=3", "training.gradient_accumulation_steps=2")
    assert plan_recipe(recipe).steps["distilled"] == run_recipe(recipe).steps


def test_a_gradient_norm_is_that_of_the_weighted_term(scene):
    one, ten = (scene(kd_loss_weight=weight).terms[0] for weight in (1, 10))
    assert ten.gradient_norm == pytest.approx(10 * one.gradient_norm)
    assert ten.value == pytest.approx(one.value)


def test_a_plan_is_made_under_the_recipes_precision(scene):
    half, full = (scene(training={"precision": precision}) for precision in ("bf16", "fp32"))
    assert (half.device, half.precision) == ("cpu", "bf16")
    assert _bytes(half, "teacher's outputs") < _bytes(full, "teacher's outputs")


def test_attentions_that_are_empty_are_an_error_that_says_eager(scene):
    with pytest.raises(OutputsError, match='attn_implementation="eager"'):
        scene(intermediate_matches=[ATTENTION], student=lambda batch, outputs: {"attention": (None, None)})


def test_logits_of_other_widths_are_an_error_that_names_both(scene):
    with pytest.raises(ShapeError, match=r"student's \[8, 5, 11\] and the teacher's \[8, 5, 7\]"):
        scene(teacher=lambda batch, outputs: {"logits": outputs["logits"][..., :7]})


def test_a_path_that_leads_nowhere_is_an_error_with_the_nearest(scene):
    with pytest.raises(ConfigError, match="inner"):
        scene(intermediate_matches=[{**PATHS, "layer_S": "iner"}])


def test_an_optimizer_that_does_not_exist_is_an_error(scene):
    with pytest.raises(ConfigError, match="Did you mean 'AdamW'"):
        scene(training={"optimizer": "Adamw"})


def test_the_plan_of_the_example_warns_of_nothing():
    plan = plan_recipe(Recipe.from_file(Path(__file__).parents[3] / "examples" / "digits.yaml"))
    assert plan.warnings == []
    assert plan.parameters == {"teacher": 94186, "student": 3148, "projections": 20 * 128 + 128}


class Bank(torch.nn.Module):
    """A weight for each example."""

    def __init__(self, num_examples):
        super().__init__()
        self.register_buffer("bank", torch.ones(num_examples))

    def forward(self, student_logits, teacher_logits, example_ids, epoch):
        assert example_ids.shape == student_logits.shape[:-1]
        return ((student_logits - teacher_logits).square().mean(-1) * self.bank[example_ids]).mean() + epoch


def test_a_loss_gets_the_ids_and_the_number_of_examples(scene):
    kdplug.losses.register("bank")(Bank)
    plan = scene(kd_loss_type="bank", training={"num_epochs": 2})
    assert plan.warnings == []
    assert _bytes(plan, "projections and losses") == 20 * 4


@pytest.mark.parametrize(("epochs", "warned"), [(1, ["dead_term"]), (2, [])])
def test_a_loss_that_starts_in_the_second_epoch_is_tried_in_it(scene, epochs, warned):
    def later(student_logits, teacher_logits, epoch):
        return (student_logits - teacher_logits).square().mean() * (epoch > 0)

    kdplug.losses.register("later")(later)
    plan = scene(kd_loss_type="later", training={"num_epochs": epochs})
    assert [one.check for one in plan.warnings] == warned


def test_rows_that_do_not_follow_their_examples_are_an_error(scene, monkeypatch):
    kdplug.losses.register("bank")(Bank)
    monkeypatch.setattr(
        Scene, "collate", lambda _, rows: {"ids": torch.stack(sorted(rows, key=lambda row: row.tolist()))}
    )
    with pytest.raises(RunError, match="the rows of a batch do not follow its examples"):
        scene(kd_loss_type="bank")
