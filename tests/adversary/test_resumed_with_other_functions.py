"""Between a kill and a resume a function holds another value, or a module another function: the run is refused and says so."""

from __future__ import annotations

from functools import partial

import pytest
import resume_scene
import torch
from resume_scene import go, kill
from small_run import Net
from torch import nn
from torch.nn.functional import gelu, softsign

from kdplug.errors import RunError

pytestmark = pytest.mark.attack("resume after a function's values changed")


def closing_over(scale):
    return lambda batch, outputs: {"logits": outputs["logits"] * scale, "losses": outputs["losses"] * scale}


def with_default(scale):
    def adaptor(batch, outputs, factor=scale):
        return {"logits": outputs["logits"] * factor, "losses": outputs["losses"] * factor}

    return adaptor


def calling(helper):
    def adaptor(batch, outputs):
        return {"logits": helper(outputs["logits"]), "losses": helper(outputs["losses"])}

    return adaptor


def taking(scale):
    def adaptor(factor, batch, outputs):
        return {"logits": outputs["logits"] * factor, "losses": outputs["losses"] * factor}

    return partial(adaptor, scale)


HELD = {
    "a closure": (closing_over, 2.0, 3.0),
    "a tensor in a closure": (closing_over, torch.tensor(2.0), torch.tensor(3.0)),
    "a default argument": (with_default, 2.0, 3.0),
    "a helper function": (calling, lambda value: value + 1, lambda value: value * 2),
    "an argument of a partial": (taking, 2.0, 3.0),
}


@pytest.mark.parametrize("what", HELD)
def test_an_adaptor_that_holds_another_value_is_found_and_named(tmp_path, what):
    make, before, after = HELD[what]
    kill("general", tmp_path, adaptor=make(before))
    with pytest.raises(RunError, match=r"adaptor \(closure, default arguments, globals or helper.*: changed"):
        go("general", tmp_path, adaptor=make(after))
    go("general", tmp_path, adaptor=make(before))


def importing(folder, scale):
    """An adaptor of one file that calls a function imported from another."""
    folder.mkdir()
    helper = f"def scaled(value):\n    return value * {scale}\n"
    adaptor = (
        "def adaptor(batch, outputs):\n    return {'logits': scaled(outputs['logits']), 'losses': outputs['losses']}\n"
    )
    names = {"__name__": "a_helper"}
    exec(compile(helper, str(folder / "a_helper.py"), "exec"), names)
    mine = {"__name__": "an_adaptor", "scaled": names["scaled"]}
    exec(compile(adaptor, str(folder / "an_adaptor.py"), "exec"), mine)
    return mine["adaptor"]


def test_a_helper_function_imported_from_another_file_is_compared(tmp_path):
    kill("general", tmp_path / "run", adaptor=importing(tmp_path / "a", 2.0))
    with pytest.raises(RunError, match=r"adaptor \(closure, default arguments, globals or helper.*: changed"):
        go("general", tmp_path / "run", adaptor=importing(tmp_path / "b", 3.0))
    go("general", tmp_path / "run", adaptor=importing(tmp_path / "c", 2.0))


def test_a_variable_that_an_adaptor_counts_in_is_no_change(tmp_path):
    calls = 0

    def adaptor(batch, outputs):
        nonlocal calls
        calls += 1
        return outputs

    kill("general", tmp_path, adaptor=adaptor)
    assert calls
    go("general", tmp_path, adaptor=adaptor)


class Activated(Net):
    """A network whose activation is a plain function, which neither prints nor has weights."""

    def __init__(self, activation, *arguments, **options):
        super().__init__(*arguments, **options)
        self.activation = nn.Identity()
        self.activate = activation

    def forward(self, batch):
        return super().forward(self.activate(batch))


ACTIVATIONS = [(torch.tanh, torch.relu), (lambda x: x.tanh(), lambda x: x.relu()), (softsign, gelu)]


@pytest.mark.parametrize(("before", "after"), ACTIVATIONS, ids=["builtin", "lambda", "functional"])
def test_a_teacher_with_another_activation_function_is_found(tmp_path, before, after):
    kill("general", tmp_path, teacher=Activated(before, 5, seed=2))
    with pytest.raises(RunError, match=r"teacher\.functions\.activate: .*"):
        go("general", tmp_path, teacher=Activated(after, 5, seed=2))
    go("general", tmp_path, teacher=Activated(before, 5, seed=2))


def test_a_student_with_another_activation_function_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(resume_scene, "make_student", lambda: Activated(torch.tanh, 3, seed=1))
    kill("general", tmp_path)
    monkeypatch.setattr(resume_scene, "make_student", lambda: Activated(torch.relu, 3, seed=1))
    with pytest.raises(RunError, match=r"student\.functions\.activate: '.*tanh' -> '.*relu'"):
        go("general", tmp_path)
