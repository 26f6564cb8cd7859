"""Observers of a run."""

from __future__ import annotations

import pytest

from kdplug.engine.observe.event import Callbacks
from kdplug.errors import PluginError


class Notes:
    def __init__(self, raising=None):
        self.seen, self.raising = [], raising

    def _note(self, *what):
        self.seen.append(what)
        if self.raising is not None:
            raise self.raising

    def run_start(self, run):
        self._note("start", run)

    def step_end(self, run, step, report):
        self._note("step", run, step, report)

    def run_end(self, run, error):
        self._note("end", run, error)


def tell_all(audience):
    audience.run_start("run")
    audience.step_end("run", 1, "report")
    audience.step_end("run", 2, "report")
    audience.run_end("run", None)


ALL = [("start", "run"), ("step", "run", 1, "report"), ("step", "run", 2, "report"), ("end", "run", None)]


def test_every_observer_receives_everything_in_order():
    first, second = Notes(), Notes()
    tell_all(Callbacks([first, second]))
    assert first.seen == second.seen == ALL


def test_an_observer_that_raises_is_reported_once_for_each_event_and_the_others_still_run():
    bad, good = Notes(raising=OSError("full")), Notes()
    with pytest.warns(RuntimeWarning) as caught:
        tell_all(Callbacks([bad, good]))
    assert [str(warning.message) for warning in caught] == [
        f"Notes.{event} raised OSError, and the run continues: full" for event in ("run_start", "step_end", "run_end")
    ]
    assert good.seen == ALL


def test_strict_passes_on_what_an_observer_raises():
    with pytest.raises(OSError, match="full"):
        tell_all(Callbacks([Notes(raising=OSError("full"))], strict=True))


def test_what_the_host_raises_because_it_is_strict_is_passed_on():
    with pytest.raises(PluginError, match="raised in"):
        tell_all(Callbacks([Notes(raising=PluginError("raised in kdplug_run_start"))]))


def test_an_interrupt_is_no_mishap_of_an_observer():
    with pytest.raises(KeyboardInterrupt):
        tell_all(Callbacks([Notes(raising=KeyboardInterrupt())]))


def test_a_run_that_nobody_observes_goes_on():
    tell_all(Callbacks())
