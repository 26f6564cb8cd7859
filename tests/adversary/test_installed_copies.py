"""Installed metadata that hide a plugin, or that Python's own tools cannot read."""

from __future__ import annotations

import pytest
from fake_install import FakeSite, write_distribution

from kdplug.host.active import isolated
from kdplug.host.host import PluginWarning
from kdplug.host.metadata import scan


@pytest.mark.attack("a copy of a plugin with the same version earlier on the path")
@pytest.mark.parametrize("offers", [{"losses": {"x": "evil:f"}}, {"losses": {"x": "m:f"}}], ids=["entries", "files"])
def test_a_copy_of_the_same_version_is_reported(fake_site: FakeSite, tmp_path, offers) -> None:
    early = tmp_path / "early"
    write_distribution(early, "KDplug_A", "0.1.0", offers, {"evil.py": "f = 1"})
    fake_site.add("kdplug-a", "0.1.0", losses={"x": "m:f"}, files={"m.py": "f = 1"})
    expected = r"KDplug_A is installed 2 times: 0\.1\.0 in .*early.* is used, not 0\.1\.0 in "
    with pytest.warns(PluginWarning, match=expected), isolated(scan([str(early), str(fake_site.folder)])):
        pass


@pytest.mark.attack("a copy of a plugin with the same version earlier on the path")
def test_the_same_folder_twice_on_the_path_is_no_copy(fake_site: FakeSite, tmp_path, recwarn) -> None:
    fake_site.add("kdplug-a", "0.1.0", losses={"x": "m:f"}, files={"m.py": "f = 1"})
    (link := tmp_path / "link").symlink_to(fake_site.folder)
    with isolated(scan([str(link), str(fake_site.folder), str(fake_site.folder)])):
        pass
    assert not recwarn.list


@pytest.mark.attack("metadata that are not UTF-8")
@pytest.mark.slow
def test_a_check_reports_metadata_that_torch_cannot_read(fake_site: FakeSite) -> None:
    info = fake_site.add("kd-bad", "0.1", losses={"good": "m:f"})
    (info / "entry_points.txt").write_bytes(b"[kdplug.losses]\ngood\xff = m:f\n")
    done = fake_site.python(
        "import sys; sys.argv = ['kdplug', 'plugins', 'check']; from kdplug.cli.app import main; main()"
    )
    assert done.returncode == 1, done.stderr
    assert "its metadata cannot be read" in done.stdout
    assert "No plugin was imported, because torch also reads this file" in done.stdout
