"""``kdplug plugins show``: what one entry does, requests and can be set to."""

from __future__ import annotations

import sys

import pytest

from kdplug.contracts.loss import DECLARATIONS

DKD = '''
from typing import Annotated, Literal

from pydantic import Field

def mykd(student_logits, teacher_logits, temperature, *, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        mode: Literal["a", "b"], top: int | None = None):
    """Decoupled distillation [in nats].

    Source: Zhao et al. 2022.
    """
'''


@pytest.fixture
def mykd_site(fake_site):
    fake_site.add("kdplug-a", "1.2", losses={"mykd": "kdplug_a:mykd"}, files={"kdplug_a.py": DKD})
    with fake_site.host():
        yield fake_site


def test_a_sheet_shows_owner_doc_inputs_and_place(kdplug, mykd_site):
    text = kdplug("plugins", "show", "mykd").stdout
    assert "kdplug-a:mykd   loss · kdplug-a 1.2 · ok" in text
    assert "Decoupled distillation [in nats].\n\nSource: Zhao et al. 2022." in text
    assert "inputs    student_logits, teacher_logits, temperature" in text
    assert f"defined   {mykd_site.folder / 'kdplug_a.py'}:6" in text


def test_extras_and_parameters_are_inputs_like_others(kdplug, fake_site):
    code = "def head(student_extras, teacher_extras, student_parameters, teacher_parameters):\n    'Compare heads.'\n"
    fake_site.add("kdplug-b", "1", losses={"head": "kdplug_b:head"}, files={"kdplug_b.py": code})
    with fake_site.host():
        text = kdplug("plugins", "show", "head").stdout
    assert "inputs    student_extras, teacher_extras, student_parameters, teacher_parameters" in text


def test_the_settings_are_a_table_of_name_type_default_and_bounds(kdplug, mykd_site):
    lines = kdplug("plugins", "show", "mykd").stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("setting"))
    cells = [line.split(maxsplit=1) for line in lines[start:]]
    assert cells[0] == ["setting", "type                default   bounds"] or cells[0][1].split() == [
        "type",
        "default",
        "bounds",
    ]
    rows = {name: " ".join(rest.split()) for name, rest in cells[1:]}
    assert rows == {"alpha": "float 0.5 >= 0, <= 1", "mode": "Literal['a', 'b'] required", "top": "int | None None"}


GROUPED = '''
from typing import Annotated

from pydantic import BaseModel, Field

class Inner(BaseModel):
    """What lies within."""

    depth: Annotated[int, Field(ge=1)] | None = None
    sizes: list[Annotated[int, Field(ge=0)]] = Field([], description="How large.")

class Outer(BaseModel):
    """Two halves."""

    inner: Inner = Inner()

def grouped(student_logits, teacher_logits, *, outer: Outer, words: Annotated[list[str], Field(min_length=2)] | None = None):
    """One with groups."""
'''


def test_groups_of_settings_are_shown_with_their_keys_each_once(kdplug, fake_site):
    fake_site.add("kdplug-a", losses={"grouped": "kdplug_a:grouped"}, files={"kdplug_a.py": GROUPED})
    with fake_site.host():
        lines = [" ".join(line.split()) for line in kdplug("plugins", "show", "grouped").stdout.splitlines()]
    assert "words list[str] length >= 2 | None None" in lines
    assert [line for line in lines if line.startswith(("Outer", "Inner"))] == [
        "Outer Two halves.",
        "Inner What lies within.",
    ]
    assert lines[-3:] == [
        "key type default bounds meaning",
        "depth int >= 1 | None None",
        "sizes list[int >= 0] [] How large.",
    ]


@pytest.mark.parametrize("name", ["mykd", "MYKD", "kdplug-a:mykd", "kdplug_a:mykd"])
def test_a_name_may_be_bare_or_qualified(kdplug, mykd_site, name):
    assert "kdplug-a:mykd" in kdplug("plugins", "show", name).stdout


def test_a_name_of_several_kinds_shows_all_of_them(kdplug, fake_site):
    source = "def one(student_logits): ...\ndef two(progress): ...\n"
    offers = {"losses": {"x": "kdplug_a:one"}, "weight_schedulers": {"x": "kdplug_a:two"}}
    fake_site.add("kdplug-a", files={"kdplug_a.py": source}, **offers)
    with fake_site.host():
        both, one = kdplug("plugins", "show", "x").stdout, kdplug("plugins", "show", "x", "--kind", "loss").stdout
    assert ("loss ·" in both, "weight scheduler ·" in both) == (True, True)
    assert ("loss ·" in one, "weight scheduler ·" in one) == (True, False)


def test_a_name_of_several_packages_shows_all_of_them(kdplug, fake_site):
    for name in ("kdplug-a", "kdplug-b"):
        module = name.replace("-", "_")
        fake_site.add(name, losses={"x": f"{module}:f"}, files={f"{module}.py": "def f(student_logits): ..."})
    with fake_site.host():
        text = kdplug("plugins", "show", "x").stdout
    assert text.count("· ambiguous") == 2


def test_a_name_of_a_distribution_that_is_not_installed_says_so(kdplug, mykd_site):
    done = kdplug("plugins", "show", "kdplug-camkit:mykt")
    assert done.exit_code == 2
    assert (
        f"'kdplug-camkit:mykt' is unknown: no distribution 'kdplug-camkit' is installed in {sys.prefix}: pip"
        in done.stderr
    )


def test_an_unknown_name_is_an_error_that_names_the_nearest(kdplug, mykd_site):
    done = kdplug("plugins", "show", "mykt")
    assert (done.exit_code, done.stderr) == (2, "error: no entry 'mykt' of any kind. Did you mean 'mykd'?\n")


def test_a_name_that_is_not_installed_says_which_package_has_it(kdplug, no_plugins):
    done = kdplug("plugins", "show", "hidden_mse")
    assert done.exit_code == 2
    assert "pip install kdplug-presets" in done.stderr


def test_an_entry_that_fails_to_load_says_why(kdplug, fake_site):
    fake_site.add("kdplug-bad", losses={"x": "kdplug_bad:X"}, files={"kdplug_bad.py": "import no_such_module"})
    with fake_site.host():
        done = kdplug("plugins", "show", "x")
    assert done.exit_code == 2
    assert "is installed but failed to load: ModuleNotFoundError" in done.stderr


DECLARED = """
import kdplug

@kdplug.coarsens
@kdplug.across_vocabularies
def declared(student_logits, teacher_logits):
    pass

@kdplug.coarsens
def summed(student_logits, teacher_logits) -> kdplug.LossSum:
    pass

class Written:
    coarsens = True
    random = True
    reads_teacher = False
    compares_items = False

    def forward(self, student_logits, teacher_logits):
        pass

class Banked:
    random = True

    def forward(self, student_logits, teacher_logits) -> "kdplug.LossSum":
        pass
"""


def test_a_loss_shows_what_it_declares(kdplug, fake_site):
    places = (("declared", "declared"), ("summed", "summed"), ("written", "Written"), ("banked", "Banked"))
    losses = {name: f"kdplug_d:{place}" for name, place in places}
    fake_site.add("kdplug-d", losses=losses, files={"kdplug_d.py": DECLARED})
    fake_site.add("kdplug-a", "1.2", losses={"mykd": "kdplug_a:mykd"}, files={"kdplug_a.py": DKD})
    with fake_site.host():
        for name, shown in (
            ("declared", "across_vocabularies, coarsens"),
            ("written", "coarsens, random, reads_teacher = False"),
            ("summed", "coarsens, -> LossSum"),
            ("banked", "-> LossSum, random"),
            ("mykd", "nothing"),
        ):
            assert f"declares  {shown}\n" in kdplug("plugins", "show", name).stdout


EVERY = """
import kdplug

def rows(student, teacher, temperature):
    pass

@kdplug.whole_sequences
@kdplug.closed_form(rows)
@kdplug.takes_numbers
@kdplug.sum_over_items
@kdplug.mean_over_items
@kdplug.coarsens
@kdplug.any_layers
@kdplug.across_vocabularies
def every(student_logits, teacher_logits):
    pass

class Heads:
    axis = 1

    def __init__(self, in_dim, out_dim):
        pass

    def forward(self, student_features, teacher_features):
        pass

class Maps:
    axis = 1

    def __init__(self, in_dim, out_dim):
        pass

class Plain:
    def __init__(self, in_dim, out_dim):
        pass
"""


@pytest.fixture
def every_site(fake_site):
    losses = {"every": "kdplug_e:every", "heads": "kdplug_e:Heads"}
    projections = {"maps": "kdplug_e:Maps", "plain": "kdplug_e:Plain"}
    fake_site.add("kdplug-e", losses=losses, projections=projections, files={"kdplug_e.py": EVERY})
    with fake_site.host():
        yield fake_site


def _facts(kdplug, name):
    """Label to text, of the lines between the documentation and the settings."""
    lines = kdplug("plugins", "show", name).stdout.split("\n\n")[2].splitlines()
    return {line[:10].strip(): line[10:] for line in lines}


def test_every_declaration_is_shown(kdplug, every_site):
    assert _facts(kdplug, "every")["declares"].split(", ") == list(DECLARATIONS)


def test_a_loss_shows_its_axis_and_the_widths_that_it_takes(kdplug, every_site):
    shown = _facts(kdplug, "heads")
    assert (shown["inputs"], shown["__init__"], shown["axis"]) == (
        "student_features, teacher_features",
        "in_dim, out_dim",
        "1",
    )
    assert not {"axis", "__init__"} & set(_facts(kdplug, "every"))


@pytest.mark.parametrize(("name", "axis"), [("maps", "1"), ("plain", "-1")])
def test_a_projection_shows_its_axis(kdplug, every_site, name, axis):
    shown = _facts(kdplug, name)
    assert shown["axis"] == axis
    assert "declares" not in shown


def test_attributes_that_fail_when_they_are_read_do_not_end_the_command(kdplug, fake_site):
    source = """
class Odd(type):
    @property
    def axis(cls):
        raise SystemExit(3)

class Loss(metaclass=Odd):
    def forward(self, student_logits, teacher_logits):
        pass
"""
    fake_site.add("kdplug-o", losses={"odd": "kdplug_o:Loss"}, files={"kdplug_o.py": source})
    with fake_site.host():
        done = kdplug("plugins", "show", "odd")
    assert (done.exit_code, "kdplug-o:odd" in done.stdout) == (0, True)
    assert "inputs    student_logits, teacher_logits" in done.stdout
    assert "axis      cannot be read: SystemExit: 3" in done.stdout
