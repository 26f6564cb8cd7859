"""What ``import kdplug`` offers. Growing this list is a decision that shows in a diff."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdplug

FACE = [
    "ADAPTOR_KEYS",
    "BaseTask",
    "BasicDistiller",
    "BasicTrainer",
    "CacheCodec",
    "ClosedForm",
    "ConfigError",
    "CustomMatch",
    "DistillationConfig",
    "Encoded",
    "EntryError",
    "Evaluation",
    "ExternalTeacher",
    "FEATURES",
    "FactoredLogits",
    "GeneralDistiller",
    "IntermediateMatch",
    "KD_LOSS_MAP",
    "KdplugError",
    "LossReport",
    "LossSum",
    "MATCH_LOSS_MAP",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "Objective",
    "Outputs",
    "OutputsError",
    "PLUGIN_API",
    "PROJ_MAP",
    "PluginError",
    "Prediction",
    "Predictions",
    "Ragged",
    "Recipe",
    "RecipeGuess",
    "RunError",
    "SettingError",
    "ShapeError",
    "SignatureError",
    "SparseLogits",
    "StudentTransforms",
    "TEMPERATURE_SCHEDULER",
    "Task",
    "TeacherUpdate",
    "TermConfig",
    "TrainingConfig",
    "Verdict",
    "WEIGHT_SCHEDULER",
    "WrappedTask",
    "across_vocabularies",
    "all_gather",
    "any_layers",
    "balancers",
    "cache_codecs",
    "closed_form",
    "coarsens",
    "evaluators",
    "facts",
    "hookimpl",
    "layer_maps",
    "load_student",
    "losses",
    "mean_over_items",
    "new_recipe",
    "projections",
    "run_recipe",
    "student_transforms",
    "sum_over_items",
    "takes_numbers",
    "tasks",
    "teacher_combiners",
    "teacher_updates",
    "teachers",
    "temperature_schedulers",
    "verdict",
    "weight_schedulers",
    "whole_sequences",
]


def test_the_public_names_are_these() -> None:
    assert sorted(kdplug.__all__) == FACE
    assert dir(kdplug) == FACE


@pytest.mark.parametrize("name", kdplug.__all__)
def test_every_public_name_resolves_and_is_kept(name: str) -> None:
    assert getattr(kdplug, name) is getattr(kdplug, name)
    assert name in vars(kdplug)


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'kdplug' has no attribute 'Objektive'$"):
        kdplug.Objektive  # noqa: B018


def test_type_checkers_and_the_lazy_face_see_the_same_names() -> None:
    places = {name for names in kdplug._ROOMS.values() for name in names}
    eager = {
        "ADAPTOR_KEYS",
        "FEATURES",
        "PLUGIN_API",
        "PluginError",
        "hookimpl",
        *(name for name in FACE if name in kdplug.host.registry.REGISTRIES),
    }
    assert places | eager == set(FACE)
    assert not places & eager


def test_errors_and_loss_sum_are_had_without_torch() -> None:
    code = "import kdplug, sys; kdplug.SettingError, kdplug.LossSum, kdplug.KD_LOSS_MAP; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
