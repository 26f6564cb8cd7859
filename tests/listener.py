"""Code that takes as long as a run is silent."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

import kdplug
from kdplug.engine.observe.activity import PULSE

ROOT = str(Path(kdplug.__file__).parent)
LIMIT = 10


class Listener:
    """``wait`` returns when something is printed. It waits once for each way in which kdplug calls it."""

    def __init__(self, capture):
        self.capture = capture
        self.ways = set()
        self.silent = []

    def wait(self, what):
        way = (what, *_callers())
        if way in self.ways or self.silent:
            return
        self.ways.add(way)
        self.capture.readouterr()
        deadline = monotonic() + LIMIT
        while not any(self.capture.readouterr()):
            if monotonic() > deadline:
                self.silent.append(" < ".join(way))
                return
            sleep(0.002)

    def slow(self, model):
        """``model`` with a forward pass that waits."""
        model.register_forward_pre_hook(lambda *_: self.wait(f"forward of {type(model).__name__}"))
        return model


def _callers():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOT):
            yield frame.f_code.co_name
        frame = frame.f_back


@contextmanager
def listening(capture):
    """A listener; fails if anything was silent, nothing waited, or a thread is left."""
    listener = Listener(capture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PULSE, "silence", 0.005)
        patch.setattr(PULSE, "redraw", 0.005)
        yield listener
    assert not listener.silent, listener.silent
    assert listener.ways
    assert not PULSE.is_running
    assert "kdplug-progress" not in [thread.name for thread in threading.enumerate()]
