"""Which parameters are inputs and which are settings."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

import kdplug
from kdplug.errors import SignatureError
from kdplug.host.component import Component
from kdplug.host.host import Host
from kdplug.host.kind import KINDS

if TYPE_CHECKING:
    from nowhere import Missing

pytestmark = pytest.mark.usefixtures("no_plugins")


def build(target: Any, *args: Any, kind: str = "losses", slot: str | None = None, **settings: Any) -> Component:
    registry = getattr(kdplug, kind)
    registry.register("mine")(target)
    return registry.build(["mine", *args, settings], slot=slot)


def refusal(target: Any, kind: str = "losses", slot: str | None = None) -> str:
    with pytest.raises(SignatureError) as caught:
        build(target, kind=kind, slot=slot)
    return str(caught.value)


def test_in_a_function_positional_parameters_are_inputs_and_keyword_only_ones_are_settings() -> None:
    def loss(teacher_logits, student_logits, /, temperature, mask=None, *, alpha=0.5, beta=2): ...

    built = build(loss)
    assert built.inputs == ("teacher_logits", "student_logits", "temperature", "mask")
    assert built.settings == {"alpha": 0.5, "beta": 2}


def test_the_target_is_called_by_position_with_the_settings_bound() -> None:
    def loss(teacher_logits, student_logits, *, alpha=0.5):
        return teacher_logits, student_logits, alpha

    built = build(loss, 0.25)
    assert built.target("T", "S") == ("T", "S", 0.25)
    assert built(student_logits="S", teacher_logits="T", mask=None) == ("T", "S", 0.25)


@pytest.mark.parametrize(
    ("old", "inputs"),
    [
        ("logits_S, logits_T", ("student_logits", "teacher_logits")),
        ("feature_S, feature_T, mask", ("student_features", "teacher_features", "mask")),
        ("state_S, state_T", ("student_features", "teacher_features")),
        ("attention_T, attention_S", ("teacher_features", "student_features")),
    ],
)
def test_the_names_of_textbrewer_are_the_same_inputs(old: str, inputs: tuple[str, ...]) -> None:
    assert build(eval(f"lambda {old}: 0")).inputs == inputs


@pytest.mark.parametrize("plural", ["losses", "weight_schedulers", "temperature_schedulers"])
def test_each_kind_gets_the_inputs_that_are_provided_at_its_place(plural: str) -> None:
    kind = KINDS[plural]
    for slot, names in kind.slots.items():
        assert build(eval(f"lambda {', '.join(names)}: 0"), kind=plural, slot=slot or None).inputs == names


def test_a_class_takes_settings_in_its_init_and_inputs_in_its_forward() -> None:
    class Loss(nn.Module):
        def __init__(self, width: int, scale: float = 1.0) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((width,), scale))

        def forward(self, student_features, teacher_features, mask=None):
            return self.weight

    built = build(Loss, 3, scale=2)
    assert built.inputs == ("student_features", "teacher_features", "mask")
    assert built.settings == {"width": 3, "scale": 2.0}
    assert isinstance(built.target, nn.Module)
    assert [parameter.tolist() for parameter in built.target.parameters()] == [[2.0, 2.0, 2.0]]


def test_building_twice_makes_two_modules() -> None:
    class Loss(nn.Module):
        def forward(self, student_logits): ...

    kdplug.losses.register("mine")(Loss)
    assert kdplug.losses.build("mine").target is not kdplug.losses.build("mine").target


def test_a_module_without_an_init_has_no_settings() -> None:
    class Loss(nn.Module):
        def forward(self, student_logits, teacher_logits): ...

    built = build(Loss)
    assert (built.settings, built.inputs) == ({}, ("student_logits", "teacher_logits"))


def test_an_inherited_init_counts_and_so_does_an_inherited_forward() -> None:
    class Parent(nn.Module):
        def __init__(self, p: int = 2) -> None:
            super().__init__()
            self.p = p

        def forward(self, student_logits): ...

    class Child(Parent):
        pass

    assert build(Child, 3).target.p == 3


def test_a_class_of_torch_with_its_own_init_is_read_by_it() -> None:
    class Loss(nn.CrossEntropyLoss):
        def forward(self, student_logits, labels): ...

    assert build(Loss, label_smoothing=0.1, slot="kd").target.label_smoothing == 0.1


def test_a_plain_class_with_call_will_do() -> None:
    class Loss:
        def __call__(self, student_logits):
            return student_logits

    assert build(Loss)(student_logits=3) == 3


def test_a_class_without_forward_is_refused() -> None:
    class Loss:
        pass

    assert (
        refusal(Loss)
        == "mine (local) is a class without a forward method. Define forward with the inputs as parameters"
    )


def test_settings_in_forward_are_refused() -> None:
    class Loss(nn.Module):
        def forward(self, student_logits, *, alpha=1.0): ...

    assert refusal(Loss) == (
        "mine (local) has a keyword-only parameter 'alpha' in its forward method. Move this setting to __init__"
    )


@pytest.mark.parametrize(
    ("parameters", "stars"),
    [
        ("student_logits, *args", "*args"),
        ("student_logits, **kwargs", "**kwargs"),
        ("*a, **k", "*a and **k"),
    ],
)
def test_variadic_parameters_are_refused(parameters: str, stars: str) -> None:
    told = f"mine (local) takes {stars}, which hides its inputs and settings. Name the inputs, then the settings after a '*'"
    assert refusal(eval(f"lambda {parameters}: 0")) == told


def test_variadic_constructors_and_forwards_are_refused() -> None:
    class Init(nn.Module):
        def __init__(self, **kwargs): ...

        def forward(self, student_logits): ...

    class Forward(nn.Module):
        def forward(self, *inputs): ...

    assert refusal(Init).startswith("mine (local) takes **kwargs,")
    assert refusal(Forward).startswith("mine (local) takes *inputs,")


def test_an_input_that_is_not_provided_is_refused_even_with_a_default() -> None:
    def typo(student_logits, teacher_logit=None): ...

    def setting(student_logits, alpha=0.5): ...

    asks = "mine (local) requests input {!r}, which the engine does not provide."
    assert refusal(typo) == asks.format("teacher_logit") + " Did you mean 'teacher_logits'?"
    assert refusal(setting) == asks.format("alpha") + " If 'alpha' is a setting, put a * before it."


@pytest.mark.parametrize("name", ["mask", "temperature", "student_logits", "logits_S", "state_T"])
def test_a_setting_may_not_carry_the_name_of_an_input(name: str) -> None:
    told = f"mine (local) has a setting {name!r}, which is the name of an input. Rename the setting, or make it a positional parameter to get the input"
    assert refusal(eval(f"lambda student_features, *, {name}=1: 0")) == told


def test_what_has_no_signature_is_refused() -> None:
    assert refusal(iter).startswith("cannot read the signature of mine (local): ")


@pytest.mark.parametrize(
    ("parameter", "slot", "told"),
    [
        (
            "student_features",
            "kd",
            (
                "requests input 'student_features', which is not available in a kd loss (kd_loss_type, or a term without "
                "layers). Use it in a match (intermediate_matches, or a term with layers)"
            ),
        ),
        (
            "student_logits",
            "match",
            (
                "requests no feature, so it cannot be used in a match (intermediate_matches, or a term with layers). Use it in "
                "a kd loss (kd_loss_type, or a term without layers)"
            ),
        ),
    ],
)
def test_a_loss_at_the_wrong_place_is_an_error_that_names_the_right_place(parameter: str, slot: str, told: str) -> None:
    assert refusal(eval(f"lambda {parameter}: 0"), slot=slot) == f"local:mine {told}"


def test_a_loss_that_fits_no_place_is_an_error() -> None:
    assert refusal(lambda teacher_sparse, student_features: 0, slot="kd").endswith(
        "Its inputs are not available together anywhere in a config"
    )


def test_a_setting_of_a_class_that_has_no_name_for_callers_is_refused() -> None:
    class Loss:
        def __init__(self, alpha=1, /): ...

        def __call__(self, student_logits): ...

    assert (
        refusal(Loss)
        == "mine (local) has the positional-only setting 'alpha', but settings are passed as keyword arguments. Remove the '/'"
    )


def test_a_projection_class_takes_widths_by_position_and_settings_by_keyword() -> None:
    class Low(nn.Linear):
        def __init__(self, in_dim: int, out_dim: int, *, bias: bool = False) -> None:
            super().__init__(in_dim, out_dim, bias=bias)

    built = build(Low, kind="projections")
    module = built.target(3, 5)
    assert (module.in_features, module.out_features, module.bias) == (3, 5, None)
    assert build(Low, True, kind="projections").target(3, 5).bias is not None


def test_a_projection_function_may_take_the_widths_in_any_order() -> None:
    def make(out_dim, in_dim, *, depth: int = 1):
        return nn.Linear(in_dim, out_dim)

    assert build(make, kind="projections")(in_dim=3, out_dim=5).in_features == 3


def test_a_weight_scheduler_takes_progress() -> None:
    def cosine(progress, *, power: float = 1.0):
        return progress**power

    assert build(cosine, 2, kind="weight_schedulers").target(0.5) == 0.25
    assert "requests input 'x'" in refusal(lambda x: x, kind="weight_schedulers")


def test_a_task_is_built_from_its_settings() -> None:
    class Corpus:
        def __init__(self, path: str, size: int = 10) -> None:
            self.path, self.size = path, size

    def corpus(path: str, size: int = 10):
        return path, size

    built = build(Corpus, "a", kind="tasks")
    assert (built.target.path, built.target.size, built.inputs) == ("a", 10, ())
    assert build(corpus, "b", size=3, kind="tasks").target == ("b", 3)


def test_an_annotation_that_exists_for_type_checkers_only_does_not_cost_the_others_theirs() -> None:
    def loss(student_logits: Missing, *, alpha: float = 1, beta: Missing = None, gamma: int = 3): ...

    assert build(loss, "0.5", "anything", "4").settings == {"alpha": 0.5, "beta": "anything", "gamma": 4}
    with pytest.raises(kdplug.SettingError, match=r"^alpha: must be a valid number, .* got 'x'"):
        build(loss, "x")


def test_a_nested_annotation_that_exists_for_type_checkers_only_is_taken_for_none() -> None:
    def loss(student_logits, *, alpha=1.0, beta=None): ...

    loss.__annotations__ = {"alpha": list["Missing"], "beta": "list[Missing] | None"}
    assert build(loss, 2, [3]).settings == {"alpha": 2.0, "beta": [3]}


def test_a_partial_gives_its_bound_settings_new_defaults() -> None:
    def lp(student_features, teacher_features, *, p: int = 1):
        return p

    assert build(functools.partial(lp, p=3)).target(0, 0) == 3
    with pytest.raises(kdplug.SettingError, match=r"^p: must be a valid integer"):
        build(functools.partial(lp, p=3), "x")


def test_a_decorated_function_is_read_through_its_wrapper() -> None:
    def loss(student_logits, *, alpha: float = 1): ...

    @functools.wraps(loss)
    def wrapper(*args, **kwargs):
        return args, kwargs

    assert build(wrapper, 2).target("S") == (("S",), {"alpha": 2.0})


def test_an_error_while_a_class_is_made_says_which_and_from_what() -> None:
    class Loss(nn.Module):
        def __init__(self, a: int) -> None:
            raise RuntimeError("no memory")

        def forward(self, student_logits): ...

    with pytest.raises(RuntimeError, match="no memory") as caught:
        build(Loss, 1)
    assert caught.value.__notes__ == ["while building local:mine from ['mine', 1]"]


def test_reading_a_signature_needs_no_settings_model(no_plugins: Host) -> None:
    def loss(student_logits): ...

    built = build(loss)
    assert built.target is loss
    assert "settings" not in vars(built.entry)


def test_an_own_settings_class_does_not_excuse_a_variadic_init() -> None:
    class Loss(nn.Module):
        class Settings(BaseModel):
            alpha: float = 1.0

        def __init__(self, **settings): ...

        def forward(self, student_logits): ...

    assert re.match(r"mine \(local\) takes \*\*settings", refusal(Loss))
