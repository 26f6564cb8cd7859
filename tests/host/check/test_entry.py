"""What a plugin offers is imported and read, and every trap in it is found, with its place and what mends it."""

from __future__ import annotations

import pytest
from check_site import GOOD, add, found, one
from fake_install import FakeSite

from kdplug.host.check.check import check_plugins


def test_the_first_party_plugins_are_in_order() -> None:
    assert check_plugins("kdplug-presets") == check_plugins("kdplug-tasks") == []


def test_a_good_plugin_has_no_finding(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    assert found(fake_site) == []


def test_a_missing_dependency_is_named_with_the_line_that_needs_it(fake_site: FakeSite) -> None:
    file = add(fake_site, "import math\nimport no_such.thing")
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.where) == ("broken", "error", f"{file}:2")
    assert "ModuleNotFoundError: No module named 'no_such'" in finding.what
    assert finding.fix.startswith("install the package of module 'no_such'")


def test_an_error_in_a_library_points_to_the_plugins_line(fake_site: FakeSite) -> None:
    file = add(fake_site, "import json\n\njson.loads('{')")
    finding = one(fake_site)
    assert finding.where == f"{file}:3"
    assert "python -c 'import kdplug_a'" in finding.fix


def test_a_syntax_error_points_to_its_line(fake_site: FakeSite) -> None:
    file = add(fake_site, "x = 1\ndef f(:")
    assert one(fake_site).where == f"{file}:2"


@pytest.mark.parametrize(("module", "target"), [("kdplug_a", "g"), ("kdplug_b", "f"), ("kdplug_a", "number")])
def test_a_target_that_leads_nowhere_is_corrected_in_the_entry_points(fake_site, module, target):
    fake_site.add("kdplug-a", files={"kdplug_a.py": f"number = 1\n{GOOD}"}, losses={"x": f"{module}:{target}"})
    finding = one(fake_site)
    assert finding.check == "broken"
    assert finding.fix.startswith(f"correct '{module}:{target}' in the entry points")


MISSPELT = {
    "whole_sequence = True": "whole_sequences",
    "own_parameter = True": "own_parameters",
    "compare_items = True": "compares_items",
    "axes = 1": "axis",
}


@pytest.mark.parametrize("line", MISSPELT)
def test_a_misspelt_declaration_is_found_with_the_nearest_name(fake_site: FakeSite, line: str) -> None:
    source = f"from torch import nn\nclass f(nn.Module):\n    'A loss.'\n    {line}\n    def forward(self, student_logits): ...\n"
    file = add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.where) == ("unread", "warning", f"{file}:2")
    assert (
        f"sets {line.split(maxsplit=1)[0]}, which kdplug does not read. Did you mean '{MISSPELT[line]}'?"
        in finding.what
    )


def test_declarations_buffers_and_methods_are_not_misspelt(fake_site: FakeSite) -> None:
    lines = ["axis = 1", "random = True", "_axes = 2", "means: int", "def shape(self): ...", "training = False"]
    body = "".join(f"    {line}\n" for line in lines)
    add(
        fake_site,
        f"from torch import nn\nclass f(nn.Module):\n    'A loss.'\n{body}    def forward(self, student_logits): ...\n",
    )
    assert found(fake_site) == []


def test_a_misspelt_attribute_of_a_function_and_of_a_projection_are_found(fake_site: FakeSite) -> None:
    add(fake_site, f"{GOOD}f.mean_over_item = True\n")
    assert "Did you mean 'mean_over_items'?" in one(fake_site).what
    source = "from torch import nn\ndef p(in_dim, out_dim):\n    'A map.'\n    return nn.Conv2d(in_dim, out_dim, 1)\np.axes = 1\n"
    add(fake_site, source, name="kdplug-b", target="p", group="projections")
    assert "Did you mean 'axis'?" in one(fake_site, "kdplug-b").what


def test_one_broken_entry_does_not_hide_another(fake_site: FakeSite) -> None:
    files = {"kdplug_a.py": "1 / 0", "kdplug_a2.py": "raise SystemExit(3)"}
    fake_site.add("kdplug-a", files=files, losses={"x": "kdplug_a:f", "y": "kdplug_a2:f"})
    assert [finding.check for finding in found(fake_site)] == ["broken", "broken"]


def test_a_misspelt_input_is_found_with_its_place(fake_site: FakeSite) -> None:
    file = add(fake_site, "def f(student_logit):\n    'A loss.'")
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("signature", f"{file}:1")
    assert "Did you mean 'student_logits'?" in finding.what


def test_inputs_that_no_place_gets_together_are_found(fake_site: FakeSite) -> None:
    add(fake_site, "def f(teacher_sparse, student_features):\n    'A loss.'")
    finding = one(fake_site)
    assert finding.check == "inputs"
    assert "not available together" in finding.what


def test_a_default_outside_its_own_bounds_is_found(fake_site: FakeSite) -> None:
    source = """
        from typing import Annotated
        from pydantic import Field
        def f(student_logits, *, alpha: Annotated[float, Field(le=1)] = 2.0, beta: float):
            "A loss."
    """
    add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("default", "error")
    assert finding.what == "the default of x's setting 'alpha' must be <= 1, got 2.0"


def test_a_setting_with_the_name_of_an_input_is_found(fake_site: FakeSite) -> None:
    add(fake_site, "def f(student_logits, *, temperature=1.0):\n    'A loss.'")
    assert "which is the name of an input" in one(fake_site).what


def test_a_class_that_cannot_be_made_from_its_defaults_is_found(fake_site: FakeSite) -> None:
    source = """
        from torch import nn
        class f(nn.Module):
            "A loss."
            def __init__(self):
                self.layer = nn.Linear(1, 1)
            def forward(self, student_logits, teacher_logits): ...
    """
    file = add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("unbuildable", f"{file}:6")


@pytest.mark.parametrize(
    ("declared", "inputs", "words"),
    [
        ("@kdplug.whole_sequences", "", "declares whole_sequences and closed_form"),
        ("", ", student_extras", "requests student_extras and declares closed_form"),
    ],
)
def test_a_closed_form_that_no_objective_accepts_is_found(fake_site: FakeSite, declared, inputs, words) -> None:
    source = f"""
        import kdplug
        def rows(student, teacher, temperature): ...
        {declared}
        @kdplug.closed_form(rows)
        def f(student_logits, teacher_logits{inputs}):
            "A loss."
    """
    add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("declarations", "error")
    assert words in finding.what
    assert finding.fix.startswith("correct its declarations in ")


def test_two_reductions_are_found(fake_site: FakeSite) -> None:
    source = """
        import kdplug
        @kdplug.mean_over_items
        @kdplug.sum_over_items
        def f(student_logits, teacher_logits):
            "A loss."
    """
    add(fake_site, source)
    finding = one(fake_site)
    assert finding.check == "declarations"
    assert finding.what.startswith("f declares both mean_over_items and sum_over_items")


def test_a_module_without_an_init_is_in_order(fake_site: FakeSite) -> None:
    source = """
        from torch import nn
        class f(nn.Module):
            "A loss."
            def forward(self, student_logits, teacher_logits): ...
    """
    add(fake_site, source)
    assert found(fake_site) == []


def test_annotations_that_exist_for_type_checkers_only_are_in_order(fake_site: FakeSite) -> None:
    source = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from nowhere import Thing
        def f(student_logits: Thing, *, alpha: float = 1.0) -> Thing:
            "A loss."
    """
    add(fake_site, source)
    assert found(fake_site) == []


def test_a_task_that_lacks_a_method_is_found(fake_site: FakeSite) -> None:
    add(fake_site, "class f:\n    'A task.'\n    metric = 'accuracy'", group="tasks")
    finding = one(fake_site)
    assert finding.check == "incomplete"
    assert "it lacks about, build_teacher" in finding.what


def test_a_missing_docstring_is_a_warning(fake_site: FakeSite) -> None:
    add(fake_site, "def f(student_logits): ...")
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("docstring", "warning")


def test_a_strict_switch_ends_no_check(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "1 / 0"}, plugins={"hooks": "kdplug_a"})
    assert one(fake_site, strict=True).check == "hook"


def test_what_plugins_register_and_print_as_they_are_imported_stays_away(fake_site, capsys):
    add(fake_site, f"import kdplug\nprint('hello')\nkdplug.losses.register('mine')(len)\n{GOOD}")
    with fake_site.host() as host:
        assert check_plugins("kdplug-a") == []
        assert "mine" not in host.entries["losses"]
    assert capsys.readouterr().out == ""
