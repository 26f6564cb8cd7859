"""What a run needs is checked before its teacher is fitted, by ``plan`` and ``run`` with the same error."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from plan_scene import Scene

import kdplug
from kdplug import KdplugError, Recipe
from kdplug.errors import RunError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


class Unfitted(Scene):
    """Fails as soon as its teacher is fitted: each batch of that part is an error."""

    def data(self, part):
        if part == "teacher":
            return Forbidden(super().data(part))
        return super().data(part)


class Forbidden(list):
    def __getitem__(self, index):
        raise AssertionError("the teacher is fitted")


@pytest.fixture
def both(tmp_path):
    """Carries out a recipe for ``Unfitted`` with ``run`` and ``plan``; returns both errors."""

    def errors(distillation=None, training=None, task=Unfitted, **more):
        data = {
            "task": "unfitted",
            "distillation": {"kd_loss_type": "ce", "hard_label_weight": 1, **(distillation or {})},
            "training": {"num_epochs": 1, "batch_size": 8, "device": "cpu", "lr": 0.01, **(training or {})},
            "output_dir": str(tmp_path / "out"),
            **more,
        }
        found = []
        with isolated(scan()):
            kdplug.tasks.register("unfitted")(task)
            for carry_out in (run_recipe, plan_recipe):
                with pytest.raises(KdplugError) as caught:
                    carry_out(Recipe.from_dict(data))
                found.append(caught.value)
        return found

    return errors


def _hide(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else real(name, *more))


def test_the_scene_fits_its_teacher_only_where_nothing_is_wrong(both):
    with pytest.raises(AssertionError, match="the teacher is fitted"):
        both()


def test_a_tracker_that_is_not_installed_is_an_error_first(both, monkeypatch):
    _hide(monkeypatch, "wandb")
    run, plan = both(training={"trackers": ["wandb"]})
    assert str(run) == str(plan)
    assert str(plan).startswith("training.trackers: tracking with Weights & Biases needs its package: pip install")


def test_a_folder_of_logs_named_as_the_tracker_is_not_the_package(both, tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    _hide_installed(monkeypatch, "wandb")
    for error in both(training={"trackers": ["wandb"]}):
        assert error.field == "training.trackers"


def _hide_installed(monkeypatch, package):
    """Find only a namespace package of that name, as Python does if nothing is installed."""
    spec = importlib.util.spec_from_loader(package, None, is_package=True)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: spec if name == package else real(name, *more))


def test_a_plan_needs_matplotlib_as_a_run_does(both, monkeypatch):
    monkeypatch.setattr("kdplug.report.curve.find_spec", lambda name: None)
    run, plan = both()
    assert str(run) == str(plan) == 'drawing curves.png needs matplotlib. Install it: pip install "kdplug[report]"'


@pytest.mark.parametrize("kind", ["file", "loop", "NUL", "300 characters", "permission"])
@pytest.mark.parametrize("field", ["output_dir", "training.log_dir"])
def test_a_folder_that_cannot_be_written_is_an_error_first(both, tmp_path, monkeypatch, kind, field):
    bad = {"NUL": "a\0b", "300 characters": str(tmp_path / ("a" * 300))}.get(kind, str(tmp_path / "bad"))
    if kind == "file":
        (tmp_path / "bad").touch()
    elif kind == "loop":
        (tmp_path / "bad").symlink_to("bad")
    elif kind == "permission":
        (tmp_path / "bad").mkdir()
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: "bad" not in str(path) and real(path, mode))
    for below in ("", "/below"):
        where = bad + below
        run, plan = both(**({"output_dir": where} if field == "output_dir" else {"training": {"log_dir": where}}))
        assert str(run) == str(plan)
        assert plan.field == field
        assert "\n" not in str(plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must be missing")
def test_a_device_that_is_missing_is_named_with_its_cause(both):
    run, plan = both(training={"device": "cuda"})
    assert str(run) == str(plan)
    assert str(plan).startswith("training.device: there is no device 'cuda': torch ")


class OtherWidths(Unfitted):
    """Its teacher has fewer classes than its student."""

    def teacher_adaptor(self, batch, outputs):
        found = super().teacher_adaptor(batch, outputs)
        return {**found, "logits": found["logits"][..., :7]}


def test_models_with_different_numbers_of_classes_are_an_error_first(both):
    run, plan = both(task=OtherWidths)
    assert str(run) == str(plan)
    assert "11" in str(plan)
    assert "7" in str(plan)


PATHS = {"layer_T": "inner", "layer_S": "inner", "loss": "hidden_mse"}


@pytest.mark.parametrize(
    "match",
    [
        {**PATHS, "layer_S": "iner", "proj": "linear"},
        {**PATHS, "layer_S": "*"},
        {**PATHS, "layer_T": "*"},
        PATHS,
        {**PATHS, "layer_S": 5, "layer_T": 0, "feature": "hidden"},
    ],
)
def test_a_match_that_does_not_fit_is_an_error_first(both, match):
    run, plan = both({"intermediate_matches": [match]})
    assert str(run) == str(plan)


def test_features_of_different_widths_without_a_projection_suggest_one(both):
    for error in both({"intermediate_matches": [PATHS]}):
        assert error.field == "distillation.intermediate_matches.0.loss"
        assert "The student's features are 4 wide, the teacher's 6: add proj: linear to the match" in str(error)


def test_a_cache_is_not_begun_for_what_a_run_cannot_use(tmp_path):
    data = {
        "task": "unfitted",
        "distillation": {"intermediate_matches": [{**PATHS, "layer_T": "iner", "proj": "linear"}]},
        "training": {"num_epochs": 1, "device": "cpu"},
        "output_dir": str(tmp_path / "out"),
    }
    with isolated(scan()):
        kdplug.tasks.register("unfitted")(Unfitted)
        with pytest.raises(KdplugError, match="iner"):
            cache_recipe(Recipe.from_dict(data), tmp_path / "cache")


def test_a_rehearsal_leaves_the_result_as_it_is(tmp_path, monkeypatch):
    data = {
        "task": "scene",
        "distillation": {"kd_loss_type": "ce"},
        "training": {"num_epochs": 1, "batch_size": 8, "device": "cpu", "lr": 0.01},
        "output_dir": str(tmp_path / "out"),
    }
    weights = []
    for rehearses in (True, False):
        if not rehearses:
            monkeypatch.setattr("kdplug.recipes.run.rehearse", lambda runner: None)
        with isolated(scan()):
            kdplug.tasks.register("scene")(Scene)
            run_recipe(Recipe.from_dict(data), overwrite=not rehearses)
        weights.append((tmp_path / "out" / "student.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_error_of_an_accelerators_device_number_says_how_many_there_are(monkeypatch):
    from kdplug.engine.parallel.process import check_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(RunError, match=r"^device: there is no device 'cuda:2': torch finds 2, numbered from 0"):
        check_device("cuda:2")
