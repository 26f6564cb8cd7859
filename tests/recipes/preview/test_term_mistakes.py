"""Mistakes in terms: each is an error with its path and the fix, in the plan and before the teacher is trained."""

from __future__ import annotations

import pytest
import torch
from plan_scene import BATCH, Scene

import kdplug
from kdplug import KdplugError, Recipe
from kdplug.host.active import isolated
from kdplug.host.metadata import scan
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

HIDDEN = {"feature": "hidden", "layer_S": 0, "layer_T": 0}


def mistyped(student_logit):
    return student_logit.mean()


def regressed(student_features, teacher_features):
    return (student_features.mean() - teacher_features.mean()).square()


def of_lists(student_features, teacher_features):
    return sum(regressed(*pair) for pair in zip(student_features, teacher_features, strict=True))


def of_extras(student_extras, teacher_extras):
    return (student_extras["values"] - teacher_extras["values"]).square().mean()


def of_parameters(student_logits, teacher_parameters):
    return student_logits.square().mean() * sum(one.mean() for one in teacher_parameters.values())


class OnMaps(torch.nn.Module):
    """Maps the axis 3, which hidden states ``[B, L, D]`` do not have."""

    axis = 3

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.map = torch.nn.Linear(in_dim, out_dim)

    def forward(self, student_features, teacher_features):
        return regressed(self.map(student_features), teacher_features)


class OfWidths(OnMaps):
    """Takes widths, which a term without layers cannot give."""

    axis = -1


class Adapting(Scene):
    """Returns values under extras on both sides."""

    def teacher_adaptor(self, batch, outputs):
        return {**super().teacher_adaptor(batch, outputs), "extras": {"values": torch.zeros(len(batch["ids"]))}}

    def student_adaptor(self, batch, outputs):
        return {**super().student_adaptor(batch, outputs), "extras": {"values": outputs["hidden"].mean(dim=(1, 2))}}


MISTAKES = {
    "unknown input": ([{"loss": "mistyped"}], "terms.0.loss", "Did you mean 'student_logits'"),
    "no such axis": (
        [{"loss": "on_maps", **HIDDEN}],
        "terms.0.loss",
        "declares axis 3, but a feature of shape [8, 5, 4] has no such axis",
    ),
    "widths without layers": ([{"loss": "of_widths"}], "terms.0.loss", "a term with layers"),
    "extras that no key names": ([{"loss": "of_extras"}], "terms.0.extras", "values"),
    "extras that were not returned": (
        [{"loss": "of_extras", "extras": ["value"]}],
        "terms.0.extras",
        "Did you mean 'values'",
    ),
    "extras that the loss does not read": (
        [{"loss": "regressed", **HIDDEN, "extras": ["values"]}],
        "terms.0.extras",
        "does not request",
    ),
    "lists of different lengths": (
        [{"loss": "of_lists", **HIDDEN, "layer_S": [0], "layer_T": [0, 0]}],
        "terms.0",
        "List the same number on both sides",
    ),
    "no terms": ([], "terms", "at least one"),
    "no such head": ([{"loss": "ce", "head_S": 1}], "terms.0.head_S", "1 head"),
    "options without parameters": (
        [{"loss": "regressed", **HIDDEN, "loss_options": {"lr": 1.0}}],
        "terms.0.loss_options",
        "no parameters",
    ),
    "no such parameter": (
        [{"loss": "of_parameters", "reads_T": ["head:parameter.wieght"]}],
        "terms.0.reads_T",
        "Did you mean 'head:parameter.weight'",
    ),
    "parameters that no key names": (
        [{"loss": "of_parameters"}],
        "terms.0.reads_T",
        "such as reads_T: [fc:parameter.weight]",
    ),
    "no such layer": ([{"loss": "regressed", **HIDDEN, "layer_T": 9}], "terms.0.layer_T", "there is no layer 9"),
}


@pytest.fixture
def recipe(tmp_path):
    """Makes a recipe with these terms; its teacher is trained."""
    with isolated(scan()):
        kdplug.tasks.register("adapting")(Adapting)
        for loss in (mistyped, regressed, of_lists, of_extras, of_parameters):
            kdplug.losses.register(loss.__name__)(loss)
        kdplug.losses.register("on_maps")(OnMaps)
        kdplug.losses.register("of_widths")(OfWidths)
        yield lambda terms: Recipe.from_dict(
            {
                "task": "adapting",
                "distillation": {"terms": terms},
                "training": {"num_epochs": 1, "batch_size": BATCH, "device": "cpu"},
                "output_dir": str(tmp_path / "out"),
            }
        )


@pytest.mark.parametrize("command", [plan_recipe, run_recipe])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_term_is_an_error_before_anything_is_trained(recipe, command, mistake, monkeypatch):
    terms, field, fix = MISTAKES[mistake]
    monkeypatch.setattr(Adapting, "evaluate", lambda *_: pytest.fail("a model was trained and evaluated"))
    with pytest.raises(KdplugError) as caught:
        command(recipe(terms))
    assert caught.value.field.startswith(f"distillation.{field}"), str(caught.value)
    assert fix in str(caught.value)
