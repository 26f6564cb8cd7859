"""TextBrewer's maps: live views of the registries with TextBrewer's signatures."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import torch
from fake_install import FakeSite
from torch import nn

import kdplug
from kdplug.errors import PluginError, SignatureError, UnknownEntryError
from kdplug.host.host import Host, PluginWarning

SEEDS = """
import torch
from kdplug import LossSum

def kd(student_logits, teacher_logits, temperature, mask=None, *, scale=1.0):
    return ("kd", student_logits, teacher_logits, temperature, mask, scale)

def match(state_T, state_S, mask=None):
    return ("match", state_S, state_T, mask)

def summed(student_features, teacher_features):
    return LossSum(torch.tensor(6.0), torch.tensor(3.0))

class Module(torch.nn.Module):
    def __init__(self, scale: float = 2.0):
        super().__init__()
        self.scale = scale
    def forward(self, student_features, teacher_features, step):
        return self.scale, step

def proj(in_dim, out_dim, *, bias: bool = True):
    return torch.nn.Linear(in_dim, out_dim, bias=bias)

def decay(progress, total_steps, *, power=1):
    "Falls."
    return (1 - progress) ** power

def constant(student_logits, teacher_logits, temperature):
    return temperature

def flsw(student_logits, teacher_logits, temperature, *, beta: float, gamma: float, eps: float = 1e-4):
    return (student_logits, teacher_logits, temperature, beta, gamma, eps)
"""


@pytest.fixture(autouse=True)
def seeds(fake_site: FakeSite) -> Iterator[Host]:
    fake_site.add(
        "kdplug-presets",
        losses={name: f"kdplug_seeds:{name}" for name in ("kd", "match", "summed")} | {"module": "kdplug_seeds:Module"},
        projections={"proj": "kdplug_seeds:proj"},
        weight_schedulers={"decay": "kdplug_seeds:decay"},
        temperature_schedulers={name: f"kdplug_seeds:{name}" for name in ("constant", "flsw")},
        files={"kdplug_seeds.py": SEEDS},
    )
    fake_site.add("kdplug-bad", losses={"bad": "kdplug_nowhere:bad"})
    with fake_site.host() as host:
        yield host


def test_a_kd_loss_is_called_as_in_textbrewer() -> None:
    loss = kdplug.KD_LOSS_MAP["kd"]
    assert loss("S", "T") == ("kd", "S", "T", 1.0, None, 1.0)
    assert loss("S", "T", 4) == loss("S", "T", temperature=4) == ("kd", "S", "T", 4, None, 1.0)


def test_a_match_loss_is_called_as_in_textbrewer() -> None:
    loss = kdplug.MATCH_LOSS_MAP["match"]
    assert loss("S", "T") == ("match", "S", "T", None)
    assert loss("S", "T", "m") == loss("S", "T", mask="m") == ("match", "S", "T", "m")
    assert kdplug.MATCH_LOSS_MAP["summed"](0, 0) == torch.tensor(2.0)
    assert kdplug.MATCH_LOSS_MAP["module"](0, 0) == (2.0, 0)


def test_a_projection_and_a_weight_scheduler_are_called_as_in_textbrewer() -> None:
    module = kdplug.PROJ_MAP["proj"](3, 5)
    assert isinstance(module, nn.Linear)
    assert tuple(module.weight.shape) == (5, 3)
    scheduler = kdplug.WEIGHT_SCHEDULER["decay"]
    assert (scheduler(0.25), scheduler.__name__, scheduler.__doc__) == (0.75, "decay", "Falls.")


def test_a_temperature_scheduler_is_itself_or_a_builder_where_settings_must_be_given() -> None:
    assert kdplug.TEMPERATURE_SCHEDULER["constant"]("S", "T", 4) == 4
    expected = ("S", "T", 4, 1.0, 2.0, 1e-4)
    assert kdplug.TEMPERATURE_SCHEDULER["flsw"](1, 2)("S", "T", 4) == expected
    assert kdplug.TEMPERATURE_SCHEDULER["flsw"](1, gamma=2)("S", "T", base_temperature=4) == expected


@pytest.mark.parametrize(
    "key", [["flsw", 1, 2], ("flsw", 1, 2), ["flsw", 1, {"gamma": 2}], {"name": "flsw", "beta": 1, "gamma": 2}]
)
def test_a_list_key_builds(key: Any) -> None:
    assert kdplug.TEMPERATURE_SCHEDULER[key]("S", "T", 4) == ("S", "T", 4, 1.0, 2.0, 1e-4)
    assert key in kdplug.TEMPERATURE_SCHEDULER


def test_the_two_maps_of_losses_show_their_own(seeds: Host) -> None:
    assert list(kdplug.KD_LOSS_MAP) == ["kd"]
    assert list(kdplug.MATCH_LOSS_MAP) == ["match", "module", "summed"]
    assert ("match" in kdplug.KD_LOSS_MAP, "kd" in kdplug.MATCH_LOSS_MAP, len(kdplug.KD_LOSS_MAP)) == (False, False, 1)
    assert repr(kdplug.KD_LOSS_MAP) == "<kdplug.KD_LOSS_MAP: kd>"


def test_a_loss_of_the_other_map_is_a_key_error_that_names_the_right_one() -> None:
    told = (
        "'match' is not in KD_LOSS_MAP: kdplug-presets:match belongs in another map, since it takes "
        "teacher_features, student_features, mask"
    )
    with pytest.raises(KeyError) as caught:
        kdplug.KD_LOSS_MAP["match"]
    assert str(caught.value) == told
    assert kdplug.KD_LOSS_MAP.get("match", 3) == kdplug.KD_LOSS_MAP.get("nothing", 3) == 3


def test_what_cannot_be_a_name_is_in_no_map() -> None:
    for key in ([], {}, None, 3, "", "bad", "nothing"):
        assert key not in kdplug.KD_LOSS_MAP


@pytest.mark.parametrize(
    ("textbrewer_map", "plural", "site"),
    [
        ("KD_LOSS_MAP", "losses", "kd"),
        ("MATCH_LOSS_MAP", "losses", "match"),
        ("PROJ_MAP", "projections", None),
        ("WEIGHT_SCHEDULER", "weight_schedulers", None),
        ("TEMPERATURE_SCHEDULER", "temperature_schedulers", None),
    ],
)
def test_what_is_put_in_a_map_can_be_named_and_taken_out_again(
    textbrewer_map: str, plural: str, site: str | None
) -> None:
    view, registry = getattr(kdplug, textbrewer_map), getattr(kdplug, plural)
    assert isinstance(view, MutableMapping)

    def mine(*args: Any) -> Any:
        return args

    view["my_L1"] = mine
    assert view["my_L1"] is mine
    assert "my_L1" in list(view)
    built = registry.build("my_L1", site)
    assert (built.entry.qualified, built.target(1, 2, 3)) == ("local:my_L1", (1, 2, 3))
    del view["my_L1"]
    assert "my_L1" not in view
    with pytest.raises(KeyError):
        del view["my_L1"]


@pytest.mark.parametrize(
    ("textbrewer_map", "plural", "site", "inputs"),
    [
        ("KD_LOSS_MAP", "losses", "kd", ("student_logits", "teacher_logits", "temperature")),
        ("MATCH_LOSS_MAP", "losses", "match", ("student_features", "teacher_features", "mask")),
        ("PROJ_MAP", "projections", None, ("in_dim", "out_dim")),
        ("WEIGHT_SCHEDULER", "weight_schedulers", None, ("progress",)),
        ("TEMPERATURE_SCHEDULER", "temperature_schedulers", None, ("student_logits", "teacher_logits", "temperature")),
    ],
)
def test_a_callable_of_a_map_is_called_by_position(
    textbrewer_map: str, plural: str, site: str | None, inputs: tuple[str, ...]
) -> None:
    getattr(kdplug, textbrewer_map)["mine"] = lambda a, b=None, c=None: (a, b, c)
    built = getattr(kdplug, plural).build("mine", site)
    assert built.inputs == inputs
    assert built(**{name: name for name in inputs}) == (*inputs, None, None)[:3]


def test_one_name_in_both_maps_of_losses_does_not_collide() -> None:
    kdplug.KD_LOSS_MAP["mse"], kdplug.MATCH_LOSS_MAP["mse"] = min, max
    assert (kdplug.KD_LOSS_MAP["mse"], kdplug.MATCH_LOSS_MAP["mse"]) == (min, max)
    assert kdplug.losses.build("mse", "kd").target is min
    assert kdplug.losses.build("mse", "match").target is max
    with pytest.raises(kdplug.EntryError, match="registered in this process both as a kd loss and as a match loss"):
        kdplug.losses.entry("mse")
    assert [kdplug.losses.status(entry) for entry in kdplug.losses.entries() if entry.name == "mse"] == ["ok", "ok"]
    del kdplug.KD_LOSS_MAP["mse"]
    assert kdplug.losses["mse"] is max


def test_what_a_map_holds_comes_before_what_was_registered_for_any_place() -> None:
    kdplug.losses.register("x")(lambda student_logits: 0)
    kdplug.KD_LOSS_MAP["x"] = min
    assert kdplug.KD_LOSS_MAP["x"] is min
    del kdplug.KD_LOSS_MAP["x"]
    assert kdplug.KD_LOSS_MAP["x"](1, 2) == 0


def test_what_was_registered_with_the_decorator_can_be_deleted_from_its_map_only() -> None:
    kdplug.losses.register("x")(lambda student_logits: 0)
    with pytest.raises(UnknownEntryError):
        del kdplug.MATCH_LOSS_MAP["x"]
    del kdplug.KD_LOSS_MAP["x"]
    assert "x" not in kdplug.losses


def test_putting_again_replaces() -> None:
    kdplug.PROJ_MAP["Mine"], kdplug.PROJ_MAP["mine"] = min, max
    assert kdplug.PROJ_MAP["MINE"] is max
    assert list(kdplug.PROJ_MAP) == ["mine", "proj"]


def test_what_a_package_offers_cannot_be_deleted() -> None:
    told = r"^PROJ_MAP: kdplug-presets:proj comes from an installed package and cannot be deleted here\. .*=-kdplug-presets$"
    with pytest.raises(PluginError, match=told):
        del kdplug.PROJ_MAP["proj"]


def test_a_local_name_that_hides_an_installed_one_gives_a_notice_when_it_is_used_not_when_it_is_listed() -> None:
    kdplug.PROJ_MAP["proj"] = min
    assert ("proj" in kdplug.PROJ_MAP, list(kdplug.PROJ_MAP)) == (True, ["proj"])
    with pytest.warns(PluginWarning, match="projection 'proj' means local:proj and not kdplug-presets:proj"):
        assert kdplug.PROJ_MAP["proj"] is min
    with pytest.warns(PluginWarning, match="means local:proj"):
        kdplug.projections.check("proj")


def test_only_names_and_callables_go_into_a_map() -> None:
    with pytest.raises(PluginError, match="'a b' is not a valid projection name"):
        kdplug.PROJ_MAP["a b"] = min
    with pytest.raises(PluginError, match="a projection must be callable, got 3"):
        kdplug.PROJ_MAP["a"] = 3  # type: ignore[assignment]


def test_a_temperature_scheduler_of_a_map_is_a_builder_when_it_is_named_with_arguments() -> None:
    def builder(beta, gamma=2):
        return lambda student, teacher, base: (student, teacher, base, beta, gamma)

    kdplug.TEMPERATURE_SCHEDULER["mine"] = builder
    assert kdplug.TEMPERATURE_SCHEDULER["mine"] is builder
    for key in (["mine", 1, 3], ["mine", 1, {"gamma": 3}]):
        assert kdplug.TEMPERATURE_SCHEDULER[key]("S", "T", 4) == ("S", "T", 4, 1, 3)
        built = kdplug.temperature_schedulers.build(key)
        assert built.target("S", "T", 4) == ("S", "T", 4, 1, 3)
        assert built.qualified_spec() == ["local:mine", *key[1:]]
    with pytest.raises(kdplug.SettingError, match=r"local:mine does not take these arguments: \['mine', 1, 2, 3\]"):
        kdplug.temperature_schedulers.build(["mine", 1, 2, 3])


def test_a_positional_callable_may_have_settings_after_a_star() -> None:
    kdplug.MATCH_LOSS_MAP["mine"] = lambda S, T, mask, *, k=1: (S, T, mask, k)
    assert kdplug.losses.build(["mine", 2], "match").target("S", "T", None) == ("S", "T", None, 2)
    with pytest.raises(kdplug.ConfigError, match="local:mine has no setting 'q'"):
        kdplug.losses.build({"name": "mine", "q": 2}, "match")


def test_a_callable_without_a_readable_signature_may_be_in_a_map() -> None:
    kdplug.WEIGHT_SCHEDULER["mine"] = max
    assert kdplug.weight_schedulers.build("mine").target is max


def test_a_class_may_be_in_the_map_of_projections() -> None:
    class Mine(nn.Linear):
        def __init__(self, dim_in, dim_out, bias=False) -> None:
            super().__init__(dim_in, dim_out, bias)

    kdplug.PROJ_MAP["mine"] = Mine
    assert kdplug.projections.build("mine").target(3, 5).out_features == 5


def test_the_star_rule_holds_for_the_decorator_and_not_for_the_maps() -> None:
    kdplug.losses.register("mine")(lambda S, T: 0)
    with pytest.raises(SignatureError, match="requests input 'S'"):
        kdplug.losses.build("mine", "match")


def test_a_misspelt_argument_of_a_loss_is_an_error() -> None:
    with pytest.raises(SignatureError, match=r"got 'masc', which is not an input of plugins. Did you mean 'mask'\?"):
        kdplug.MATCH_LOSS_MAP["match"]("s", "t", masc=None)
