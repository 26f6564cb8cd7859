"""A plugin that cannot be imported breaks the name that asks for it, and nothing else."""

from __future__ import annotations

import importlib
import pickle

import pytest
from fake_install import FakeSite

import kdplug
from kdplug.errors import BrokenEntryError

WORKING = {"kdplug_good.py": "def good(student_logits, teacher_logits): return 0"}


def test_only_the_name_that_asks_for_it_breaks(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-good", losses={"good": "kdplug_good:good"}, files=WORKING)
    fake_site.add("kdplug-bad", losses={"bad": "kdplug_bad:bad"}, files={"kdplug_bad.py": "import no_such_module"})
    with fake_site.host():
        assert kdplug.losses.build("good").target(1, 2) == 0
        assert kdplug.losses.check("bad").error is None
        with pytest.raises(BrokenEntryError) as caught:
            kdplug.losses.build("bad")
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        assert kdplug.losses.entry("bad").error is caught.value.__cause__


def test_a_failure_is_not_cached_as_a_success(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-bad", losses={"bad": "kdplug_bad:bad"}, files={"kdplug_bad.py": "raise OSError('disk')"})
    with fake_site.host():
        for _ in range(2):
            with pytest.raises(BrokenEntryError, match="OSError: disk"):
                kdplug.losses.load("bad")
        (fake_site.folder / "kdplug_bad.py").write_text("def bad(student_logits, *, k=1): return 'mended'\n")
        importlib.invalidate_caches()
        assert kdplug.losses.build("bad").target(0) == "mended"
        assert kdplug.losses.entry("bad").error is None


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("other = 1", "AttributeError: module 'kdplug_bad' has no attribute 'bad'"),
        ("bad = 3", "TypeError: kdplug_bad:bad is not callable, but of type int"),
    ],
)
def test_whatever_a_module_does_is_reported_with_its_owner(fake_site: FakeSite, source: str, told: str) -> None:
    fake_site.add("kdplug-bad", "0.1.0", losses={"x": "kdplug_bad:bad"}, files={"kdplug_bad.py": source})
    with fake_site.host(), pytest.raises(BrokenEntryError) as caught:
        kdplug.losses.load("x")
    text = str(caught.value)
    assert text.startswith(f"'kdplug-bad:x' is installed but failed to load: {told}")
    assert (
        "(kdplug_bad:bad, kdplug-bad 0.1.0). Correct or upgrade the package, or disable it: KDPLUG_PLUGINS=-kdplug-bad"
        in text
    )


def test_interrupting_an_import_is_not_a_failure_of_the_plugin(fake_site: FakeSite) -> None:
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)"
    fake_site.add("kdplug-bad", losses={"x": "kdplug_bad:x"}, files={"kdplug_bad.py": source})
    with fake_site.host(), pytest.raises(KeyboardInterrupt):
        kdplug.losses.load("x")


def test_the_error_survives_pickling(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-bad", losses={"x": "no_such:x"})
    with fake_site.host(), pytest.raises(BrokenEntryError) as caught:
        kdplug.losses.load("x")
    error = caught.value.at("kd_loss_type")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_broken_metadata_about_where_it_came_from_does_not_hide_the_failure(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-bad", losses={"x": "no_such:x"}, direct_url='{"dir_info": null')
    fake_site.add("kdplug-worse", losses={"y": "no_such:y"}, direct_url='{"dir_info": null}')
    with fake_site.host():
        for name in ("x", "y"):
            with pytest.raises(BrokenEntryError, match="No module named 'no_such'"):
                kdplug.losses.load(name)
