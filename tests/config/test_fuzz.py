"""Ten thousand configs, half of them spoilt: each is valid or an error with a path, and imports no plugin but those it names."""

from __future__ import annotations

import sys

import pytest
from config_strategy import components, distillations, junk_values
from hypothesis import given, settings
from hypothesis import strategies as st

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import KdplugError
from kdplug.testing import plugin_site

NAMED, NEVER = "kdplug_fuzz_named", "kdplug_fuzz_never"
KINDS = ("losses", "projections", "weight_schedulers", "temperature_schedulers")
SOURCE = """
def anything(student_logits, teacher_logits, *, alpha: float = 1.0):
    return student_logits.sum()
"""
OF_THE_WHOLE = ("every term is disabled", *(f"{count} problems" for count in range(2, 40)))
"""Beginnings of the messages that are about no single field, or that list several with theirs."""


@pytest.fixture
def plugins():
    """Two packages more: a config may name one of them, and none names the other."""

    def points(module, name):
        return {f"kdplug.{kind}": {name: f"{module}:anything"} for kind in KINDS}

    with (
        plugin_site("kdplug-fuzz-named", "1.0", points(NAMED, "named"), {f"{NAMED}.py": SOURCE}),
        plugin_site("kdplug-fuzz-never", "1.0", points(NEVER, "never-named"), {f"{NEVER}.py": SOURCE}),
    ):
        yield


def error_of(make):
    try:
        make()
    except KdplugError as error:
        return error
    return None


def imported():
    return {NAMED, NEVER} & sys.modules.keys()


def check(data):
    """Read a config and import what it names; what it named and imported is forgotten."""
    made = []
    error = error_of(lambda: made.append(DistillationConfig.from_dict(data)))
    assert not imported()
    if error is None:
        error = error_of(made[0].resolved)
    assert error is None or error.field or error.message.startswith(OF_THE_WHOLE), error
    assert imported() <= ({NAMED} if "named" in repr(data) else set())
    sys.modules.pop(NAMED, None)


@pytest.mark.slow
def test_ten_thousand_configs_are_valid_or_an_error_with_a_path_and_import_what_they_name_alone(plugins):
    @given(distillations, st.data())
    @settings(max_examples=10_000, deadline=None)
    def holds(data, draw):
        if draw.draw(st.booleans()):
            data = {**data, "kd_loss_type": draw.draw(components("named", "kdplug-fuzz-named:named"))}
        for _ in range(draw.draw(st.integers(0, 2))):
            key = draw.draw(st.sampled_from([*DistillationConfig.model_fields, "zzz"]))
            data = {**data, key: draw.draw(junk_values)}
        check(data)

    holds()


def test_a_config_that_names_a_plugin_imports_it_when_it_is_resolved_and_no_other(plugins):
    config = DistillationConfig(kd_loss_type="named")
    assert not imported()
    config.resolved()
    assert imported() == {NAMED}
