"""The life-cycle hooks as one observer of a run."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from fake_install import FakeSite

from kdplug.errors import PluginError
from kdplug.host.active import LifeCycle
from kdplug.host.host import PluginWarning

TELLS = """
import kdplug
told = []

@kdplug.hookimpl
def kdplug_run_start(run):
    told.append(("start", run.total_steps))

@kdplug.hookimpl
def kdplug_step_end(report, step):
    told.append(("step", step, float(report.total)))

def kdplug_run_end():
    told.append("end")
"""


def run(events: LifeCycle) -> None:
    seen, report = SimpleNamespace(total_steps=2), SimpleNamespace(total=torch.tensor(0.5), terms={})
    events.run_start(seen)
    events.step_end(seen, 1, report)
    events.step_end(seen, 2, report)
    events.run_end(seen, None)


def test_an_implementation_takes_any_subset_of_the_arguments_in_any_order(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-tells", plugins={"hooks": "kdplug_tells"}, files={"kdplug_tells.py": TELLS})
    with fake_site.host():
        run(LifeCycle())
    assert sys.modules["kdplug_tells"].told == [
        ("start", 2),
        ("step", 1, 0.5),
        ("step", 2, 0.5),
        "end",
    ]


def test_a_plugin_that_raises_is_said_once_and_left_alone_and_the_others_go_on(fake_site: FakeSite) -> None:
    source = "calls = []\ndef kdplug_step_end(step):\n    calls.append(step)\n    raise ValueError('oh')\n"
    fake_site.add("kdplug-bad", plugins={"hooks": "kdplug_bad"}, files={"kdplug_bad.py": source})
    fake_site.add("kdplug-tells", plugins={"hooks": "kdplug_tells"}, files={"kdplug_tells.py": TELLS})
    with fake_site.host(), pytest.warns(PluginWarning) as caught:
        run(LifeCycle())
    assert [str(warning.message) for warning in caught] == [
        "plugin 'kdplug-bad:hooks' raised in kdplug_step_end and is not called again in this run: ValueError: oh"
    ]
    assert sys.modules["kdplug_bad"].calls == [1]
    assert len(sys.modules["kdplug_tells"].told) == 4


def test_a_plugin_that_raises_is_an_error_when_strict(fake_site: FakeSite) -> None:
    source = "def kdplug_run_start(): raise ValueError('oh')"
    fake_site.add("kdplug-bad", plugins={"hooks": "kdplug_bad"}, files={"kdplug_bad.py": source})
    with fake_site.host(strict=True), pytest.raises(PluginError, match="raised in kdplug_run_start"):
        LifeCycle().run_start(SimpleNamespace())


def test_plugins_are_called_in_the_order_of_their_names_unless_they_declare_another(
    fake_site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, marks in {"a": "trylast=True", "b": "", "c": "", "d": "tryfirst=True"}.items():
        source = f"import kdplug\n@kdplug.hookimpl({marks})\ndef kdplug_run_start(): print('{name}', end='')\n"
        fake_site.add(f"kdplug-{name}", plugins={"hooks": f"kdplug_{name}"}, files={f"kdplug_{name}.py": source})
    with fake_site.host():
        LifeCycle().run_start(SimpleNamespace())
    assert capsys.readouterr().out == "dbca"


def test_without_plugins_nothing_happens(no_plugins: object) -> None:
    run(LifeCycle())
