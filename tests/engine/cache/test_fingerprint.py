"""Forward hooks and whatever else changes a teacher's outputs are part of its fingerprint; kdplug's own hooks are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug.engine.cache.fingerprint import changes, teacher_fingerprint
from kdplug.engine.teacher import Teacher

VECTOR = torch.ones(2)


def steer(module, args, output):
    return output + VECTOR


def double_input(module, args):
    return (2 * args[0],)


def negated(values):
    return -values


class Steering:
    def __init__(self, vector, model=None):
        self.vector, self.model = vector, model

    def hook(self, module, args, output):
        return output + self.vector


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def of(model):
    return teacher_fingerprint({"teacher": Teacher(model)})


HOOKS = {
    "a hook": (lambda model: model[2].register_forward_hook(steer), r"teacher.2, forward hook steer"),
    "a pre-hook": (
        lambda model: model[0].register_forward_pre_hook(double_input),
        "teacher.0, forward pre-hook double_input",
    ),
    "a hook on the whole": (lambda model: model.register_forward_hook(steer), "teacher.Sequential, forward hook steer"),
    "a hook on all modules": (
        lambda model: nn.modules.module.register_module_forward_hook(steer),
        "teacher.every module, forward hook steer",
    ),
}


@pytest.mark.parametrize(("register", "name"), HOOKS.values(), ids=HOOKS)
def test_a_hook_is_named_when_it_is_new_and_when_it_is_gone(model, register, name):
    before = of(model)
    handle = register(model)
    try:
        hooked = of(model)
    finally:
        handle.remove()
    assert changes(before, hooked) == [f"the hooks on the teacher: {name} (new)"]
    assert changes(hooked, of(model)) == [f"the hooks on the teacher: {name} (removed)"]
    assert of(model) == before


def test_a_replaced_forward_is_noticed(model):
    before = of(model)
    model[1].forward = negated
    assert changes(before, of(model)) == ["the hooks on the teacher: teacher.1, replaced negated (new)"]


def test_what_a_hook_does_and_reads_counts(model, monkeypatch):
    def register(hook):
        handle = model[2].register_forward_hook(hook)
        found = of(model)
        handle.remove()
        return found

    def closing_over(vector):
        return lambda module, args, output: output + vector

    one, two = torch.ones(2), torch.full((2,), 2.0)
    for make in (closing_over, lambda vector: Steering(vector).hook, lambda vector: Steering(vector, model).hook):
        assert register(make(one)) == register(make(one.clone()))
        assert register(make(one)) != register(make(two))
    before = register(steer)
    monkeypatch.setitem(globals(), "VECTOR", two)
    assert changes(before, register(steer)) == ["the hooks on the teacher: teacher.2, forward hook steer"]


def test_two_hooks_of_one_name_and_their_order_count(model):
    hooks = [lambda module, args, output: output + 1, lambda module, args, output: output * 2]
    found = []
    for order in (hooks, hooks[::-1]):
        handles = [model[2].register_forward_hook(hook) for hook in order]
        found.append(of(model)["hooks"]["teacher"])
        for handle in handles:
            handle.remove()
    assert len(found[0]) == 2
    assert found[0] != found[1]


def test_hooks_that_read_features_for_a_match_do_not_count(model):
    before, teacher = of(model), Teacher(model)
    with teacher.capturing(["0", "1"]):
        assert len(model[0]._forward_hooks) == 1
        assert of(model) == before


def test_a_hook_that_every_module_shares_and_that_holds_the_model_is_read_once():
    model = nn.Sequential(*(nn.Sequential(*(nn.Linear(2, 2) for _ in range(10))) for _ in range(30)))
    recorder = Steering(torch.ones(2), model)
    model.recorder = recorder
    recorder.itself = [recorder, model]
    for module in model.modules():
        module.register_forward_hook(recorder.hook)
    assert len(of(model)["hooks"]["teacher"]) == 331


def test_weights_in_a_buffer_that_is_not_saved_count(model):
    model.register_buffer("shift", torch.zeros(2), persistent=False)
    before = of(model)
    model.shift += 1
    assert changes(before, of(model)) == ["the teacher's weights: teacher.shift"]


def test_a_model_without_hooks_has_none_in_its_fingerprint(model):
    assert "hooks" not in of(model)
    assert "hooks" not in of(torch.compile(model, backend="eager"))


def test_a_function_that_a_module_holds_counts_by_what_it_does(model):
    model.activation = lambda x: x.tanh()
    before = of(model)
    assert changes(before, of(model)) == []
    model.activation = lambda x: x.relu()
    assert changes(before, of(model)) == ["the teacher's architecture: teacher"]


def test_a_module_that_prints_an_address_has_the_same_fingerprint_twice(model):
    class Printing(nn.Module):
        def extra_repr(self):
            return repr(object())

    model.append(Printing())
    assert of(model) == of(model)


def test_no_mixed_precision_is_named_as_in_the_config():
    assert changes({"precision": "no"}, {"precision": "bf16"}) == [
        "the precision of the forward pass: 'fp32' -> 'bf16'"
    ]
