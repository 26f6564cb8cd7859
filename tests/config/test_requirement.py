from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import ConfigError, PluginError

_PYTEST = version("pytest")


@pytest.mark.parametrize("text", ["pytest", "pytest>=1", f"pytest=={_PYTEST}", "nobody>=1; python_version < '3'"])
def test_a_requirement_that_is_met_is_kept_as_it_is_written(text):
    config = DistillationConfig(plugins={"require": [text]})
    assert config.to_dict()["plugins"] == {"require": [text], "hooks": []}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kdplug-nobody>=0.2", 'needs kdplug-nobody>=0.2, which is not installed: pip install "kdplug-nobody>=0.2"'),
        ("kdplug-nobody", "needs kdplug-nobody, which is not installed: pip install kdplug-nobody"),
        ("pytest>=9999", f'needs pytest>=9999, but pytest {_PYTEST} is installed: pip install "pytest>=9999"'),
    ],
)
def test_a_requirement_that_is_not_met_says_what_is_installed_and_what_to_do(text, says):
    with pytest.raises(PluginError, match=rf"^plugins\.require\.1: {re.escape(says)}$"):
        DistillationConfig(plugins={"require": ["pytest", text]})


def test_text_that_is_no_requirement_is_refused():
    with pytest.raises(
        ConfigError, match=r"^plugins\.require\.0: '=>3' is not a requirement such as 'kdplug-myloss>=0\.2': "
    ):
        DistillationConfig(plugins={"require": ["=>3"]})


def test_an_address_is_refused():
    with pytest.raises(ConfigError, match=r"^plugins\.require\.0: .* contains a URL\. Write a name and versions"):
        DistillationConfig(plugins={"require": ["pytest @ https://example.org/pytest.whl"]})


@pytest.mark.parametrize("value", ["pytest", None, {"a": 1}])
def test_requirements_are_a_list(value):
    with pytest.raises(ConfigError, match=r"^plugins\.require: must be a list, got "):
        DistillationConfig(plugins={"require": value})


def test_the_version_is_that_of_the_package_whose_entries_count(fake_site, tmp_path, monkeypatch):
    fake_site.add("kdplug-a", "1.0", losses={"x": "kdplug_a:f"})
    (egg := tmp_path / "kdplug_a.egg-info").mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: kdplug-a\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with fake_site.host():
        DistillationConfig(kd_loss_weight=0, hard_label_weight=1, plugins={"require": ["kdplug-a>=1"]})
