"""``kdplug schema``: JSON on standard output, troubles on standard error."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft7Validator

RECIPE = {"task": "toy", "distillation": {"kd_loss_type": "mykd"}, "training": {"num_epochs": 1}}
LOSS = """
    print("hello from a plugin")

    def mykd(student_logits, teacher_logits, *, alpha: float = 1.0):
        "Decoupled."

    class Toy:
        "A task."
"""


@pytest.fixture
def site(fake_site):
    fake_site.add(
        "kdplug-a", losses={"mykd": "kdplug_a:mykd"}, files={"kdplug_a.py": LOSS}, tasks={"toy": "kdplug_a:Toy"}
    )
    return fake_site


@pytest.fixture
def broken(site):
    site.add("kdplug-bad", losses={"x": "kdplug_bad:x"}, files={"kdplug_bad.py": "import apex"})
    return site


def _wrong(schema, **kd):
    recipe = {**RECIPE, "distillation": {"kd_loss_type": kd}}
    return [list(error.absolute_path) for error in Draft7Validator(schema).iter_errors(recipe)]


def test_it_prints_a_schema_with_settings_and_nothing_else(kdplug, site):
    with site.host():
        done = kdplug("schema")
    schema = json.loads(done.stdout)
    assert done.exit_code == 0
    assert _wrong(schema, name="mykd", alpha=2) == []
    assert _wrong(schema, name="mykd", alpha="x") == [["distillation", "kd_loss_type", "alpha"]]


def test_a_broken_plugin_is_named_on_standard_error_and_keeps_its_name(broken):
    done = broken.python("from kdplug.cli.app import app; app(['schema'])")
    schema = json.loads(done.stdout)
    assert done.returncode == 0
    assert (
        "warning: the schema lacks the settings of an entry: 'kdplug-bad:x' is installed but failed to load"
        in done.stderr
    )
    assert "hello from a plugin" in done.stderr
    assert _wrong(schema, name="x", anything=1) == []
    assert "kdplug-bad:x" in schema["$comment"]


def test_names_imports_no_plugin_and_no_torch(broken):
    code = """
        import json, sys
        from kdplug.cli.app import app
        app(["schema", "--names"], standalone_mode=False)
        assert not {"torch", "kdplug_a", "kdplug_bad", "kdplug_presets", "kdplug_tasks"} & set(sys.modules)
    """
    schema = json.loads(broken.prints(code))
    assert _wrong(schema, name="mykd", anything=1) == []
    assert _wrong(schema, name="dkdd") == [["distillation", "kd_loss_type", "name"]]


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("distillation", {"temperature": 2}, {"task": "toy"}),
        ("training", {"seed": 1}, {"num_epochs": 1}),
    ],
)
def test_the_parts_have_schemas_of_their_own(kdplug, site, kind, right, wrong):
    with site.host():
        validator = Draft7Validator(json.loads(kdplug("schema", "--kind", kind, "--names").stdout))
    assert (validator.is_valid(right), validator.is_valid(wrong)) == (True, False)


def test_an_ambiguous_name_is_refused_bare_and_accepted_qualified(kdplug, site):
    site.add("kdplug-b", losses={"mykd": "kdplug_b:mykd"})
    with site.host():
        schema = json.loads(kdplug("schema", "--names").stdout)
    assert _wrong(schema, name="mykd") == [["distillation", "kd_loss_type", "name"]]
    assert _wrong(schema, name="kdplug-b:mykd") == []


def test_under_strict_a_broken_plugin_is_an_error(broken):
    done = broken.python("from kdplug.cli.app import app; app(['schema'])", KDPLUG_STRICT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: the schema lacks the settings of an entry: 'kdplug-bad:x'" in done.stderr
