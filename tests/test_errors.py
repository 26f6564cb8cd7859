"""The tree of errors, and what an error says."""

from __future__ import annotations

import copy
import pickle

import pytest

from kdplug import errors
from kdplug.errors import KdplugError, SettingError, did_you_mean, nearest

CLASSES = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("UnknownKeyError", ValueError),
        ("SettingError", ValueError),
        ("EntryError", ValueError),
        ("UnknownEntryError", KeyError),
        ("NotInstalledError", KeyError),
        ("AmbiguousEntryError", KeyError),
        ("BrokenEntryError", ImportError),
        ("SignatureError", TypeError),
        ("PluginError", ValueError),
        ("OutputsError", ValueError),
        ("ShapeError", ValueError),
        ("RunError", RuntimeError),
    ],
)
def test_each_error_is_the_builtin_that_python_would_raise(name: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), builtin)
    assert issubclass(getattr(errors, name), KdplugError)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_its_field_and_its_message_and_survives_a_copy(kind: type[KdplugError]) -> None:
    error = kind("must be >= 0", field="gamma").at("intermediate_matches", 1)
    assert str(error) == "intermediate_matches.1.gamma: must be >= 0"
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), other.field) == (kind, str(error), error.field)


def test_a_field_grows_from_the_inside() -> None:
    error = SettingError("no")
    assert str(error) == "no"
    assert str(error.at("gamma").at("temperature_scheduler")) == "temperature_scheduler.gamma: no"
    assert error.at() is error


def test_the_nearest_choice_ignores_case_and_separators() -> None:
    assert nearest("Hidden-MSE", ["hidden_mse", "ce"]) == "hidden_mse"
    assert did_you_mean("hiden_mse", ["hidden_mse"]) == " Did you mean 'hidden_mse'?"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert nearest("qqq", ["hidden_mse", "ce"]) is None
    assert did_you_mean("qqq", []) == ""


def test_the_list_of_errors_is_sorted_and_complete() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, KdplugError)
    }
    assert {kind.__name__ for kind in CLASSES} == defined
    assert errors.__all__ == sorted(errors.__all__)
