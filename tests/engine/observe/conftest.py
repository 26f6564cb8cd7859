"""A clock that a test moves."""

from __future__ import annotations

import pytest

from kdplug.engine.observe.activity import PULSE


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock; ``clock.wait`` lets seconds pass, as the thread that watches them does."""

    class Clock:
        now = 0.0

        def wait(self, seconds):
            self.now += seconds
            PULSE.check()

    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock
