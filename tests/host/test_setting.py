"""Settings: the model, its bounds, and what is said when they are broken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

import kdplug
from kdplug.errors import ConfigError, SettingError, SignatureError, UnknownKeyError

pytestmark = pytest.mark.usefixtures("no_plugins")


def loss(
    student_logits,
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    mode: Literal["sum", "mean"] = "mean",
    layers: list[int] | None = None,
    required: int,
): ...


def bare(student_logits, *, count=3, ratio=0.5, flag=True, word="a", anything=None, must): ...


def build(target: Any, spec: Any = "mine") -> Any:
    kdplug.losses.register("mine")(target)
    return kdplug.losses.build(spec)


def refusal(target: Any, spec: Any = "mine", kind: type[ConfigError] = SettingError) -> str:
    with pytest.raises(ConfigError) as caught:
        build(target, spec)
    assert type(caught.value) is kind
    return str(caught.value)


def test_settings_are_given_by_position_by_name_or_both() -> None:
    expected = {"alpha": 0.25, "mode": "sum", "layers": None, "required": 7}
    assert build(loss, ["mine", 0.25, "sum", None, 7]).settings == expected
    assert build(loss, ["mine", 0.25, {"mode": "sum", "required": 7}]).settings == expected
    assert build(loss, {"name": "mine", "required": 7, "mode": "sum", "alpha": 0.25}).settings == expected


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (["mine", 2], "alpha: must be <= 1, got 2   (['mine', 2]: the 1st setting is 'alpha')"),
        ({"name": "mine", "alpha": -0.5, "required": 1}, "alpha: must be >= 0, got -0.5"),
        ({"name": "mine", "alpha": math.nan, "required": 1}, "alpha: must be a finite number, got nan"),
        ({"name": "mine", "alpha": math.inf, "required": 1}, "alpha: must be a finite number, got inf"),
        (["mine", 1, "max"],
         "mode: must be 'sum' or 'mean', got 'max'   (['mine', 1, 'max']: the 2nd setting is 'mode')"),
        (["mine", 1, "sum", [1, "x"], 1],
         ("layers.1: must be a valid integer, unable to parse string as an integer, got 'x'   "
          "(['mine', 1, 'sum', [1, 'x'], 1]: the 3rd setting is 'layers')")),
        ({"name": "mine", "required": 1.5},
         "required: must be a valid integer, got a number with a fractional part, got 1.5"),
        ("mine", "required: is required by local:mine"),
        (["mine", 1, {"alpha": 1, "required": 1}],
         "alpha: is set twice, by position and by name: ['mine', 1, {'alpha': 1, 'required': 1}]"),
        (["mine", 1, "sum", None, 1, 2],
         ("local:mine got 5 settings by position, but has only 4 settings (alpha, mode, layers, required): "
          "['mine', 1, 'sum', None, 1, 2]")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_setting(spec: Any, told: str) -> None:
    assert refusal(loss, spec) == told


def test_an_unknown_setting_gets_the_nearest_one_and_all_of_them() -> None:
    told = "local:mine has no setting 'alhpa'. Did you mean 'alpha'? Its settings: alpha, mode, layers, required."
    assert refusal(loss, {"name": "mine", "alhpa": 1, "required": 1}, UnknownKeyError) == told


def test_a_loss_without_settings_says_so() -> None:
    def plain(student_logits): ...

    assert (
        refusal(plain, {"name": "mine", "a": 1}, UnknownKeyError)
        == "local:mine has no setting 'a'. It has no settings."
    )
    assert refusal(plain, ["mine", 1]) == "local:mine got 1 setting by position, but has no settings: ['mine', 1]"


@pytest.mark.parametrize("number", [*range(1, 5), 11, 12, 13, 21])
def test_places_are_counted_as_people_count(number: int) -> None:
    scope: dict[str, Any] = {}
    exec(f"def f(student_logits, *, {', '.join(f's{k}=1' for k in range(30))}): ...", scope)
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st"}.get(number, "th")
    spec = ["mine", *[1] * (number - 1), "x"]
    assert f"the {number}{suffix} setting is 's{number - 1}'" in refusal(scope["f"], spec)


def test_a_scalar_default_replaces_a_missing_annotation() -> None:
    assert build(bare, ["mine", 1.5, 1, False, "b", [1], {"must": {}}]).settings == {
        "count": 1.5, "ratio": 1.0, "flag": False, "word": "b", "anything": [1], "must": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("count", "many", "must be a valid integer or a valid number, got 'many'"),
        ("ratio", "x", "must be a valid number, unable to parse string as a number, got 'x'"),
        ("flag", "maybe", "must be a valid boolean, unable to interpret input, got 'maybe'"),
        ("word", 3, "must be a valid string, got 3"),
    ],
)
def test_the_type_of_a_scalar_default_is_held_to(setting: str, value: Any, told: str) -> None:
    assert refusal(bare, {"name": "mine", "must": 1, setting: value}) == f"{setting}: {told}"


def test_text_that_yaml_did_not_take_for_a_number_is_one() -> None:
    settings = build(bare, {"name": "mine", "must": 1, "ratio": "1e-3", "count": "1e-3"}).settings
    assert (settings["ratio"], settings["count"]) == (0.001, 0.001)


def test_an_own_settings_class_overrides_the_signature() -> None:
    class Loss(nn.Module):
        class Settings(BaseModel):
            low: float = 0.0
            high: Annotated[float, Field(gt=0)] = 1.0

        def __init__(self, high, low) -> None:
            super().__init__()
            self.range = (low, high)

        def forward(self, student_logits): ...

    assert build(Loss).target.range == (0.0, 1.0)
    assert build(Loss, ["mine", -1, 3]).target.range == (-1.0, 3.0)
    assert refusal(Loss, {"name": "mine", "high": 0}) == "high: must be > 0, got 0"
    assert "has no setting 'hihg'. Did you mean 'high'?" in refusal(Loss, {"name": "mine", "hihg": 2}, UnknownKeyError)


def test_a_rule_of_an_own_settings_class_is_reported_as_written() -> None:
    from pydantic import model_validator

    class Loss:
        class Settings(BaseModel):
            low: float = 0.0
            high: float = 1.0

            @model_validator(mode="after")
            def ordered(self):
                if self.low > self.high:
                    raise ValueError("low must not be above high")
                return self

        def __init__(self, low, high): ...

        def forward(self, student_logits): ...

    assert refusal(Loss, ["mine", 2, 1]).startswith("low must not be above high, got ")


@pytest.mark.parametrize(
    "name", ["copy", "json", "schema", "model_dump", "model_config", "_private", "self_", "class_"]
)
def test_a_setting_may_have_a_name_that_pydantic_uses(name: str) -> None:
    target = eval(f"lambda student_logits, *, {name}=1: {name}")
    built = build(target, {"name": "mine", name: 5})
    assert (built.settings, built.target(0)) == ({name: 5}, 5)
    assert refusal(target, {"name": "mine", name: "x"}).startswith(f"{name}: must be a valid")


@pytest.mark.parametrize(("kind", "name"), [("losses", "name"), ("projections", "name"), ("projections", "options")])
def test_a_setting_whose_key_is_taken_in_a_mapping_is_refused(kind: str, name: str) -> None:
    registry = getattr(kdplug, kind)
    registry.register("mine")(eval(f"lambda *, {name}=1: None"))
    with pytest.raises(
        SignatureError, match=f"^mine \\(local\\) has a setting '{name}', which cannot be set in a config"
    ):
        registry.build("mine")


def test_a_setting_called_name_is_refused_in_a_settings_class_too() -> None:
    class Named:
        class Settings(BaseModel):
            name: str = "x"

        def __init__(self, name): ...

        def forward(self, student_logits): ...

    with pytest.raises(SignatureError, match=r"Rename the setting$"):
        build(Named)


def test_the_qualified_spec_holds_every_setting_and_builds_the_same_again() -> None:
    built = build(loss, ["mine", 0.25, {"required": 7}])
    assert built.qualified_spec() == {
        "name": "local:mine", "alpha": 0.25, "mode": "mean", "layers": None, "required": 7,
    }  # fmt: skip
    assert kdplug.losses.build(built.qualified_spec()).settings == built.settings


def test_a_default_that_is_no_data_is_passed_on_and_left_out_of_what_is_written() -> None:
    def odd(
        student_logits, *, clip: float = math.inf, call=math.sqrt, path: Path = Path("a"), pair: list[int] = (1, 2)
    ):
        return clip, call, path

    built = build(odd)
    assert built.qualified_spec() == {"name": "local:mine", "clip": math.inf, "path": "a", "pair": [1, 2]}
    assert kdplug.losses.build(built.qualified_spec()).target(0) == (math.inf, math.sqrt, Path("a"))


def test_a_mutable_default_is_not_shared() -> None:
    def collects(student_logits, *, seen: list[int] = []):  # noqa: B006
        return seen

    build(collects).target(0).append(1)
    assert build(collects, ["mine", {}]).target(0) == []


def test_an_annotation_that_makes_no_model_is_the_authors_error() -> None:
    def odd(student_logits, *, k: Annotated[int, Field(discriminator="x")] = 1): ...

    with pytest.raises(SignatureError, match=r"^cannot build a model of mine's settings \(local\): "):
        build(odd, ["mine", 1])


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    layers: int = 1
    width: int = 2


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: _Inner | None = None


def test_an_unknown_key_inside_a_group_of_settings_gets_the_nearest_one_there() -> None:
    @kdplug.losses.register("grouped")
    def grouped(student_logits, *, group: _Outer = _Outer()):  # noqa: B008
        return student_logits.mean()

    with pytest.raises(UnknownKeyError) as caught:
        kdplug.losses.build({"name": "grouped", "group": {"inner": {"layer": 3}}})
    assert str(caught.value) == (
        "group.inner.layer: there is no such key. Did you mean 'layers'? The keys are layers, width"
    )
