"""Recipes whose losses read extras of the task's adaptors and parameters of its models."""

from __future__ import annotations

import json

import pytest
import torch
from codec_specimen import register
from safetensors.torch import load_file

import kdplug
from kdplug.errors import ConfigError, OutputsError
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


def same_sums(student_extras, teacher_extras, teacher_parameters):
    """Compare the sums of both sides, and penalize nothing: the teacher's weight only scales."""
    scale = teacher_parameters[":parameter.weight"].abs().mean()
    return scale * (student_extras["sums"] - teacher_extras["sums"]).square().mean()


TERM = {"loss": "same_sums", "extras": ["sums"], "reads_T": [":parameter.weight"]}


@pytest.fixture
def recipe(signs, tmp_path, monkeypatch):
    """A recipe whose adaptors return sums as extras, and changes."""
    register()
    kdplug.losses.register("same_sums")(same_sums)
    task = kdplug.tasks.load("signs")
    monkeypatch.setattr(task, "reads", set(), raising=False)
    monkeypatch.setattr(task, "expect", lambda self, reads: task.reads.update(reads), raising=False)
    for side in ("student", "teacher"):
        plain = getattr(task, f"{side}_adaptor")

        def with_sums(self, batch, outputs, plain=plain):
            return {**plain(self, batch, outputs), "extras": {"sums": outputs.sum(-1)}}

        monkeypatch.setattr(task, f"{side}_adaptor", with_sums)

    def make(*changes, term=TERM, out="out"):
        data = signs().to_dict()
        data["distillation"] = {"terms": [{"loss": "soft"}, term]}
        data["output_dir"] = str(tmp_path / out)
        return kdplug.Recipe.from_dict(data).with_overrides(changes)

    return make


def test_a_recipe_reads_extras_and_parameters_also_without_its_teacher(recipe, tmp_path, monkeypatch):
    run_recipe(recipe(out="plain"))
    cache = json.dumps(str(tmp_path / "cache"))
    cached = [
        f"training.teacher_cache={cache}",
        "training.teacher_cache_codec=whole",
        "distillation.is_caching_logits=true",
    ]
    cache_recipe(recipe(*cached), tmp_path / "cache")
    shared = load_file(tmp_path / "cache" / "shared.safetensors")
    assert set(shared) == {"0/logits/0@shift", "0/parameters/:parameter.weight"}
    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_teacher", lambda self: 1 / 0)
    run_recipe(recipe(*cached, out="cached"))
    plain, found = (
        {path.name: load_file(path) for path in sorted((tmp_path / out).rglob("*.safetensors"))}
        for out in ("plain", "cached")
    )
    assert plain.keys() == found.keys()
    assert plain
    for name, tensors in plain.items():
        torch.testing.assert_close(tensors, found[name], rtol=1e-5, atol=1e-6)
    assert "extras" in kdplug.tasks.load("signs").reads


def test_a_plan_shows_a_term_on_extras(recipe):
    plan = plan_recipe(recipe())
    assert [term.name for term in plan.terms] == ["soft", "same_sums"]
    assert plan.matches == []
    assert not plan.warnings
    (_, term) = plan.config.terms
    assert (term.extras, term.reads_T) == (("sums",), (":parameter.weight",))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"extras": ["sum"]},
            OutputsError,
            r"distillation\.terms\.1\.extras: the \w+ returned no extra 'sum', only sums\. Did you",
        ),
        (
            {"reads_T": [":parameter.weights"]},
            ConfigError,
            r"distillation\.terms\.1\.reads_T\.0: no parameter 'weights' in the",
        ),
        ({"extras": None}, ConfigError, r"distillation\.terms\.1\.extras: is required"),
    ],
)
def test_a_wrong_name_is_an_error_of_the_plan_with_its_path(recipe, change, error, message):
    with pytest.raises(error, match=message):
        plan_recipe(recipe(term={**TERM, **change}))
