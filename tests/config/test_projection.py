from __future__ import annotations

import copy
import re

import pytest

from kdplug.config.match import IntermediateMatch, ProjectionSpec, read_projection
from kdplug.errors import ConfigError, UnknownEntryError
from kdplug.host.spec import ComponentSpec

_FORMS = [
    "linear",
    ["linear", 384, 768],
    ["linear", "auto", 768],
    ["linear", 384, 768, {"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.98], "fused": None}],
    [["linear", False], 384, 768],
    [{"name": "linear", "bias": False}, 384, 768, {"lr": 1}],
    {"name": "linear", "in_dim": 384, "out_dim": "auto", "bias": False},
    {"name": "linear", "in_dim": 384, "out_dim": 768, "options": {"lr": 0.1}},
]


@pytest.mark.parametrize("data", _FORMS)
def test_each_form_is_written_back_as_it_came_and_never_edited(data):
    given = copy.deepcopy(data)
    assert read_projection(given).to_data() == data
    assert given == data


@pytest.mark.parametrize("data", _FORMS)
def test_a_spec_is_read_as_the_data_it_means(data):
    spec = read_projection(data)
    assert read_projection(spec) == spec


def test_the_student_width_comes_first():
    spec = read_projection(["linear", 384, 768])
    assert (spec.in_dim, spec.out_dim) == (384, 768)


def test_a_name_alone_has_automatic_widths():
    spec = read_projection("linear")
    assert (spec.in_dim, spec.out_dim, dict(spec.options)) == ("auto", "auto", {})


def test_a_mapping_may_leave_out_everything_but_the_name():
    assert read_projection({"name": "linear"}).to_data() == {"name": "linear", "in_dim": "auto", "out_dim": "auto"}


def test_empty_options_are_no_options():
    assert read_projection(["linear", 3, 5, {}]) == read_projection(("linear", 3, 5))


@pytest.mark.parametrize(
    "spec",
    [
        ProjectionSpec(ComponentSpec("linear", (False,)), 3, 5, form="mapping"),
        ProjectionSpec(ComponentSpec("linear"), 3, 5, form="name"),
        ProjectionSpec(ComponentSpec("linear"), "auto", "auto", {"lr": 1}, form="name"),
    ],
)
def test_a_spec_whose_form_does_not_fit_loses_nothing(spec):
    again = read_projection(spec)
    assert (again.in_dim, again.out_dim, again.options) == (spec.in_dim, spec.out_dim, spec.options)
    assert again.component.args == spec.component.args


@pytest.mark.parametrize("component", [ComponentSpec("linear"), ComponentSpec("linear", (False,), form="list")])
def test_a_component_spec_is_a_projection_with_automatic_widths(component):
    spec = read_projection(component)
    assert (spec.component.args, spec.in_dim, spec.out_dim) == (component.args, "auto", "auto")


@pytest.mark.parametrize("word", [None, "none"])
def test_null_and_none_mean_no_projection(match, word):
    assert IntermediateMatch(**match, proj=word).to_dict()["proj"] is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            [],
            "proj: a projection is [name, student width, teacher width] and may end in {optimizer options}, got 0 elements: [].",
        ),
        (
            ["linear"],
            "proj: a projection is [name, student width, teacher width] and may end in {optimizer options}, got 1 element: ",
        ),
        (
            ["linear", 384],
            "proj: a projection is [name, student width, teacher width] and may end in {optimizer options}, got 2 elements",
        ),
        (
            ["linear", 3, 5, {}, 1],
            "proj: a projection is [name, student width, teacher width] and may end in {optimizer options}, got 5",
        ),
        (["linear", 3, 5, 1e-3], "proj.3: must be a mapping of optimizer options, such as {lr: 1.0e-3}, got 0.001"),
        (["linear", 3.0, 5], "proj.1: the student width must be a whole number >= 1, or auto, got 3.0"),
        (["linear", 3, "768"], "proj.2: the teacher width must be a whole number >= 1, or auto, got '768'"),
        (["linear", True, 5], "proj.1: the student width must be a whole number >= 1, or auto, got True"),
        (["linear", 0, 5], "proj.1: the student width must be a whole number >= 1, or auto, got 0"),
        (["linear", -3, 5], "proj.1: the student width must be a whole number >= 1, or auto, got -3"),
        (
            ["linear", "atuo", 5],
            "proj.1: the student width must be a whole number >= 1, or auto, got 'atuo'. Did you mean 'auto'?",
        ),
        (
            {"name": "linear", "in_dim": None},
            "proj.in_dim: the student width must be a whole number >= 1, or auto, got None",
        ),
        ({"in_dim": 3}, "proj: a component needs a 'name'"),
        ([5, 3, 5], "proj.0: cannot read 5 as a component"),
        (5, "proj: cannot read 5 as a projection. Write a name, or [linear, 384, 768]"),
    ],
)
def test_each_malformed_form_is_refused_with_its_place(match, data, says):
    with pytest.raises(ConfigError, match=rf"^{re.escape(says)}"):
        IntermediateMatch(**match, proj=data)


def test_one_name_in_a_list_is_to_be_written_alone(match):
    with pytest.raises(ConfigError, match=r"Write 'linear' alone for automatic widths$"):
        IntermediateMatch(**match, proj=["linear"])


def test_an_unknown_projection_is_an_error_at_the_field(match):
    with pytest.raises(UnknownEntryError, match=r"^proj: no projection named 'linaer'\. Did you mean 'linear'"):
        IntermediateMatch(**match, proj=["linaer", 3, 5])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": "1e-3"}, "proj.3.lr: must be a number, got '1e-3'"),
        ({"lr": True}, "proj.3.lr: must be a number, got True"),
        ({"weight_decay": -1}, "proj.3.weight_decay: must be >= 0, got -1"),
        ({"lr": float("nan")}, "proj.3.lr: must be a finite number, got nan"),
        ({"betas": [0.9, float("inf")]}, "proj.3.betas.1: must be a finite number, got inf"),
        ({"params": []}, "proj.3.params: is set by kdplug. Remove this option"),
        ({"learning_rate": 1}, "proj.3.learning_rate: unknown optimizer option. Did you mean 'lr'?"),
        ({"lr": {"value": 1}}, "proj.3.lr: must be a number, true, false, null or a list of numbers, got {'value': 1}"),
        ({1: 2}, "proj.3: a key must be text, got 1"),
    ],
)
def test_options_that_no_optimizer_takes_are_refused(match, options, says):
    with pytest.raises(ConfigError, match=rf"^{re.escape(says)}$"):
        IntermediateMatch(**match, proj=["linear", 3, 5, options])
