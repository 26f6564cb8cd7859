"""What a run says about the plugins that took part."""

from __future__ import annotations

import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

import pytest
from fake_install import FakeSite

import kdplug
from kdplug.host.active import isolated
from kdplug.host.host import PluginWarning
from kdplug.host.manifest import environment_record, header_line, ignored_records, plugin_records
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
        assert header_line() == f"{core} · plugins: kdplug-a 1.0 · ignored: kdplug-b"
    with isolated():
        assert header_line() == f"{core} · plugins: none"


def test_a_record_holds_version_origin_content_and_hooks(fake_site: FakeSite) -> None:
    fake_site.add(
        "kdplug-a",
        losses={"a": "m:f"},
        plugins={"spy": "m", "log": "m"},
        direct_url={"url": "https://example.org/a", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
    )
    with fake_site.host():
        (record,) = plugin_records()
    assert len(record.pop("sha256")) == 64
    assert record == {
        "dist": "kdplug-a",
        "version": "1.0",
        "editable": False,
        "commit": "abc123",
        "hooks": ["log", "spy"],
    }


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dir_info": null, "vcs_info": null}'])
def test_a_damaged_direct_url_costs_only_what_it_would_hold(fake_site: FakeSite, text: str) -> None:
    (fake_site.add("kdplug-a", losses={"a": "m:f"}, direct_url=text) / "RECORD").unlink()
    with fake_site.host():
        (record,) = plugin_records()
    assert (record["editable"], record["commit"], record["sha256"]) == (False, None, None)


def test_the_environment_names_versions_and_the_plugin_api(fake_site: FakeSite) -> None:
    with fake_site.host():
        record = environment_record()
    assert record["kdplug"] == kdplug.__version__
    assert record["plugin_api"] == kdplug.PLUGIN_API
    assert (record["torch"], record["plugins"], record["ignored_plugins"]) == (installed_version("torch"), [], [])


def test_a_hook_plugin_that_failed_is_ignored_with_its_error(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-bad", plugins={"spy": "kdplug_bad"}, files={"kdplug_bad.py": "import apex"})
    with fake_site.host() as host:
        with pytest.warns(PluginWarning):
            host.load_hooks()
        assert ignored_records() == [
            {"dist": "kdplug-bad", "version": "1.0", "reason": "spy: ModuleNotFoundError: No module named 'apex'"}
        ]


def _hash(site: FakeSite, record: str | None = None, **options: Any) -> str | None:
    info = site.add("kdplug-a", losses={"a": "kdplug_a.inner:f"}, **options)
    if record is not None:
        (info / "RECORD").write_text(record)
    with site.host():
        return plugin_records()[0]["sha256"]


LISTED = "kdplug_a/inner.py,sha256=aa,3\nkdplug_a-1.0.dist-info/entry_points.txt,sha256=bb,9\n"
TRACES = """kdplug_a-1.0.dist-info/INSTALLER,sha256=pip,4
kdplug_a-1.0.dist-info/direct_url.json,sha256=there,4
kdplug_a-1.0.dist-info/REQUESTED,,
kdplug_a-1.0.dist-info/RECORD,,
kdplug_a/__pycache__/inner.cpython-311.pyc,,
../../../bin/tool,sha256=shebang,9
"""


def test_traces_of_an_installation_do_not_change_the_hash(fake_site: FakeSite) -> None:
    assert _hash(fake_site, LISTED) == _hash(fake_site, TRACES + LISTED)


@pytest.mark.parametrize("part", ["aa", "bb", "inner.py"])
def test_what_a_plugin_consists_of_changes_the_hash(fake_site: FakeSite, part: str) -> None:
    assert _hash(fake_site, LISTED) != _hash(fake_site, LISTED.replace(part, "other"))


EDITABLE = {"url": "file:///src", "dir_info": {"editable": True}}
SOURCE = {"kdplug_a/__init__.py": "", "kdplug_a/inner.py": "def f(student_logits): ..."}


def test_a_changed_source_changes_the_hash_of_an_editable_install(fake_site: FakeSite) -> None:
    before = _hash(fake_site, files=SOURCE, direct_url=EDITABLE)
    assert before == _hash(fake_site, files=SOURCE, direct_url=EDITABLE)
    assert before != _hash(fake_site, files={**SOURCE, "kdplug_a/inner.py": "f = None"}, direct_url=EDITABLE)
    assert "kdplug_a" not in sys.modules


def test_an_editable_install_has_the_hash_of_the_wheel_of_the_same_source(fake_site: FakeSite) -> None:
    editable = _hash(fake_site, files=SOURCE, direct_url=EDITABLE)
    digests = {
        path: urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=") for path, text in SOURCE.items()
    }
    wheel = "".join(f"{path},sha256={digest},1\n" for path, digest in digests.items())
    assert editable == _hash(fake_site, wheel)
