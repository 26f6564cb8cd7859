"""What a run says about the plugins that took part."""

from __future__ import annotations

import hashlib

import pytest
from fake_install import FakeSite

from kdplug.host.active import isolated
from kdplug.host.manifest import header_line, ignored_records, plugin_records
from kdplug.host.metadata import installed_version


def test_the_header_names_kdplug_torch_and_every_plugin(fake_site: FakeSite) -> None:
    fake_site.add(
        "kdplug-b", "2.0", losses={"b": "m:f"}, direct_url={"url": "file:///b", "dir_info": {"editable": True}}
    )
    fake_site.add("kdplug-a", "1.0", losses={"a": "m:f"})
    core = f"kdplug {installed_version('kdplug')} · torch {installed_version('torch')}"
    with fake_site.host():
        assert header_line() == f"{core} · plugins: kdplug-a 1.0, kdplug-b 2.0 (editable)"
    with fake_site.host(without=frozenset({"kdplug-b"})):
        assert header_line() == f"{core} · plugins: kdplug-a 1.0 · left out: kdplug-b"
    with isolated():
        assert header_line() == f"{core} · plugins: none"


def test_a_record_tells_version_origin_and_hash(fake_site: FakeSite) -> None:
    info = fake_site.add(
        "kdplug-a",
        losses={"a": "m:f"},
        direct_url={"url": "https://example.org/a", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
    )
    with fake_site.host():
        assert plugin_records() == [
            {
                "dist": "kdplug-a",
                "version": "1.0",
                "editable": False,
                "commit": "abc123",
                "sha256": hashlib.sha256((info / "RECORD").read_bytes()).hexdigest(),
            }
        ]
        assert ignored_records() == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dir_info": null, "vcs_info": null}'])
def test_a_damaged_direct_url_costs_only_what_it_would_tell(fake_site: FakeSite, text: str) -> None:
    (fake_site.add("kdplug-a", losses={"a": "m:f"}, direct_url=text) / "RECORD").unlink()
    with fake_site.host():
        assert plugin_records() == [
            {"dist": "kdplug-a", "version": "1.0", "editable": False, "commit": None, "sha256": None}
        ]
