"""Plugins on a temporary path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import importlib_metadata
import pytest

import kdplug
from kdplug.host.active import active
from kdplug.testing import isolated_plugins, plugin_site, write_plugin_site

__all__ = ["isolated_plugins"]

POINTS = {"kdplug.losses": {"twice": "twice_plugin.loss:twice"}}
FILES = {
    "twice_plugin/__init__.py": "",
    "twice_plugin/loss.py": '''
        def twice(student_logits, teacher_logits):
            """Twice the squared error."""
            return 2 * (student_logits - teacher_logits).square().mean()
        ''',
}


def test_a_site_is_seen_next_to_what_is_installed() -> None:
    with plugin_site("kdplug-twice", "1.2", POINTS, FILES):
        assert kdplug.losses.entry("twice").owner == "kdplug-twice 1.2"
        assert "hidden_mse" in kdplug.losses
    assert "twice" not in kdplug.losses


def test_a_site_is_imported_when_it_is_named_and_forgotten_afterwards() -> None:
    with plugin_site("kdplug-twice", "1.2", POINTS, FILES) as site:
        assert "twice_plugin" not in sys.modules
        assert kdplug.losses["twice"].__doc__ == "Twice the squared error."
        assert "twice_plugin.loss" in sys.modules
    assert "twice_plugin.loss" not in sys.modules
    assert not site.path.exists()
    assert str(site.path) not in sys.path


def test_of_two_sites_of_one_name_the_inner_one_counts() -> None:
    with plugin_site("kdplug-twice", "1.0", POINTS, FILES), plugin_site("kdplug.twice", "2.0", POINTS, FILES):
        assert kdplug.losses.entry("twice").version == "2.0"


def test_two_sites_of_different_names_are_both_there() -> None:
    with plugin_site("kdplug-a", "1.0", POINTS, FILES), plugin_site("kdplug-b", "1.0", POINTS, FILES):
        assert [entry.dist for entry in kdplug.losses.entries() if entry.name == "twice"] == ["kdplug-a", "kdplug-b"]


def test_a_site_is_gone_even_if_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError), plugin_site("kdplug-twice", "1.0", POINTS, FILES):
        _ = 1 / 0
    assert "twice" not in kdplug.losses


def test_a_subprocess_sees_a_site() -> None:
    code = "import kdplug; print(kdplug.losses.entry('twice').owner)"
    with plugin_site("kdplug-twice", "1.2", POINTS, FILES) as site:
        done = subprocess.run(
            [sys.executable, "-c", code], env=site.environment, capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == "kdplug-twice 1.2"


def test_a_written_distribution_is_what_an_installer_writes(tmp_path: Path) -> None:
    site = write_plugin_site(tmp_path, "kdplug-twice", "1.2", POINTS, FILES)
    found = importlib_metadata.Distribution.at(site.dist_info)
    assert (found.metadata["Name"], found.version) == ("kdplug-twice", "1.2")
    hashes = {str(file): file.hash.value for file in found.files or () if file.hash is not None}
    assert set(hashes) >= {*FILES, "kdplug_twice-1.2.dist-info/METADATA"}
    assert all((tmp_path / name).is_file() for name in hashes)


def test_without_entry_points_a_site_offers_nothing() -> None:
    before = [dist.name for dist in active().dists]
    with plugin_site("kdplug-nothing", files={"nothing_at_all.py": "x = 1"}):
        import nothing_at_all

        assert nothing_at_all.x == 1
        assert [dist.name for dist in active().dists] == before


@pytest.mark.usefixtures("isolated_plugins")
def test_isolated_registries_see_nothing() -> None:
    assert kdplug.losses.names() == kdplug.projections.names() == []


@pytest.mark.usefixtures("isolated_plugins")
def test_isolated_registries_see_what_they_are_given() -> None:
    kdplug.losses.register("mine")(lambda student_logits, teacher_logits: None)
    assert kdplug.losses.names() == ["mine"]
    with plugin_site("kdplug-twice", "1.2", POINTS, FILES):
        assert kdplug.losses.names() == ["twice"]


def test_what_was_given_to_isolated_registries_is_gone() -> None:
    assert "mine" not in kdplug.losses
