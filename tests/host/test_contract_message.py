"""The messages of the plugin contract, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_install import FakeSite, distribution

import kdplug
from kdplug.errors import KdplugError
from kdplug.host.active import isolated

FLSW = """
from typing import Annotated
from pydantic import Field

def flsw(student_logits, teacher_logits, temperature, *, beta: float, gamma: Annotated[float, Field(ge=0)]): ...
"""


def told(ask: Callable[[], object], *field: object) -> str:
    with pytest.raises(KdplugError) as caught:
        ask()
    return str(caught.value.at(*field)) if field else str(caught.value)


def test_an_unknown_name() -> None:
    with isolated([distribution("kdplug-presets", "0.1.0", losses={"hidden_mse": "p:h", "ce": "p:c"})]):
        assert told(lambda: kdplug.losses.check("hiden_mse", "match"), "intermediate_matches", 1, "loss") == (
            "intermediate_matches.1.loss: no loss named 'hiden_mse'. Did you mean 'hidden_mse' (kdplug-presets 0.1.0)? To list all: kdplug plugins list --kind loss"
        )


def test_a_name_that_two_packages_offer() -> None:
    dists = [distribution("kdplug-b", "2.0", losses={"mykd": "b:x"}), distribution("kdplug-a", losses={"mykd": "a:x"})]
    with isolated(dists):
        assert told(lambda: kdplug.losses.check("mykd", "kd"), "kd_loss_type") == (
            "kd_loss_type: 'mykd' is offered by 2 packages: kdplug-a:mykd (1.0), kdplug-b:mykd (2.0). Write one of these."
        )


def test_an_entry_that_fails_to_load(fake_site: FakeSite) -> None:
    fake_site.add(
        "kdplug-bad",
        "0.1.0",
        losses={"x": "kdplug_bad.losses:X"},
        files={"kdplug_bad/losses.py": """raise ImportError("No module named 'apex'")"""},
        direct_url={"url": "file:///home/me/kdplug-bad", "dir_info": {"editable": True}},
    )
    with fake_site.host():
        assert told(lambda: kdplug.losses.build("x", "kd"), "kd_loss_type") == (
            "kd_loss_type: 'kdplug-bad:x' is installed but failed to load: ImportError: No module named 'apex'\n"
            "    (kdplug_bad.losses:X, kdplug-bad 0.1.0, editable). "
            "Correct or upgrade the package, or disable it: KDPLUG_PLUGINS=-kdplug-bad"
        )


def test_an_entry_of_a_package_that_is_not_installed() -> None:
    with isolated():
        assert told(lambda: kdplug.losses.check("hidden_mse", "match"), "intermediate_matches", 0, "loss") == (
            "intermediate_matches.0.loss: 'hidden_mse' is not installed. It is part of kdplug-presets: "
            "pip install kdplug-presets"
        )
        assert told(lambda: kdplug.tasks.check("Kdplug_Tasks:digits")).endswith("pip install kdplug-tasks")


def test_a_setting_out_of_bounds(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-presets", temperature_schedulers={"flsw": "fake_flsw:flsw"}, files={"fake_flsw.py": FLSW})
    with fake_site.host():
        assert told(lambda: kdplug.temperature_schedulers.build(["flsw", 1, -1]), "temperature_scheduler") == (
            "temperature_scheduler.gamma: must be >= 0, got -1   (['flsw', 1, -1]: the 2nd setting is 'gamma')"
        )


def test_a_switch_that_names_nobody(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-myloss", losses={"m": "m:f"})
    done = fake_site.python("import kdplug; len(kdplug.losses)", KDPLUG_PLUGINS="kdplug-mylos")
    assert (
        "KDPLUG_PLUGINS names 'kdplug-mylos', but no such plugin is installed. Did you mean 'kdplug-myloss'?"
        in done.stderr
    )
    assert done.returncode == 0


def test_an_input_that_the_engine_does_not_provide(fake_site: FakeSite) -> None:
    source = "def my_loss(student_logit, teacher_logits): ..."
    fake_site.add("kdplug-myloss", losses={"my_loss": "kdplug_my:my_loss"}, files={"kdplug_my.py": source})
    with fake_site.host():
        assert told(lambda: kdplug.losses.build("my_loss")) == (
            "my_loss (kdplug-myloss) requests input 'student_logit', which the engine does not provide. "
            "Did you mean 'student_logits'?"
        )


def test_a_first_party_package_that_is_too_old() -> None:
    with isolated([distribution("kdplug-presets", "0.0.9", losses={"ce": "p:c"})]):
        assert told(lambda: kdplug.losses.check("cos")) == (
            "'cos' is part of kdplug-presets, but the installed kdplug-presets 0.0.9 does not offer this name: pip install --upgrade kdplug-presets"
        )


def test_an_editable_install_that_is_older_than_its_entry_points(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-presets", direct_url={"dir_info": {"editable": True}}, losses={"ce": "p:c"})
    with fake_site.host():
        assert told(lambda: kdplug.losses.check("cos")).endswith("pip install -e . in its folder")


def test_a_near_miss_of_a_name_whose_package_is_not_installed() -> None:
    with isolated():
        assert told(lambda: kdplug.losses.check("hiden_mse")) == (
            "no loss named 'hiden_mse'. Did you mean 'hidden_mse' (pip install kdplug-presets)? To list all: kdplug plugins list --kind loss"
        )


def test_a_name_like_no_other() -> None:
    with isolated([distribution("kdplug-a", losses={"mykd": "a:x"})]):
        assert told(lambda: kdplug.weight_schedulers.check("qqqq")) == (
            "no weight scheduler named 'qqqq'. To list all: kdplug plugins list --kind weight_scheduler"
        )


def test_the_listing_works_and_names_the_package_while_presets_are_not_installed(fake_site: FakeSite) -> None:
    code = """
        import importlib_metadata
        found = importlib_metadata.distributions
        importlib_metadata.distributions = lambda **given: [one for one in found(**given) if "kdplug" not in one.name]
        import kdplug
        print(kdplug.losses.names(), end=" ")
        try:
            kdplug.losses.check("hidden_mse")
        except kdplug.EntryError as error:
            print(error)
    """
    assert fake_site.prints(code) == (
        "[] 'hidden_mse' is not installed. It is part of kdplug-presets: pip install kdplug-presets"
    )
