"""Report slow operations, so that a run is never silent for more than ten seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Activity(Protocol):
    """Something that may take long. Another thread calls ``beat``, which prints a line or, if ``is_drawn``, redraws."""

    is_drawn: bool

    def beat(self) -> None: ...


class Pulse:
    """Lets the innermost activity report whenever nothing was printed for a while.

    The thread that does so runs only during an activity. It ends before a fork and starts again after it in the parent,
    so that a worker process inherits no lock from it.
    """

    def __init__(self) -> None:
        self.silence = 9.0
        """Seconds between two lines: below ten, so that a late line is still in time."""
        self.redraw = 1.0
        """Seconds between two drawings."""
        self.lock = threading.RLock()
        """Held while an activity reports."""
        self.printed = 0.0
        """The time of the last output."""
        self._activities: list[Activity] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """True during an activity."""
        return bool(self._activities)

    def start(self, activity: Activity) -> None:
        """Add the innermost activity."""
        with self.lock:
            self._activities.append(activity)
            if self._thread is None:
                self.printed = time.monotonic()
                self._begin()

    def end(self, activity: Activity) -> None:
        """Remove an activity, even if one that began inside it has not ended. The thread ends with the last one."""
        with self.lock:
            self._activities = [one for one in self._activities if one is not activity]
            thread = None if self._activities else self._stopped()
        _join(thread)

    def check(self) -> float:
        """Let the innermost activity report if that is due; return the seconds until the next check."""
        with self.lock:
            if not self._activities:
                return self.redraw
            inner, now = self._activities[-1], time.monotonic()
            pause = self.redraw if inner.is_drawn else self.silence
            left = self.printed + pause - now
            if left <= 0:
                self.printed, left = now, pause
                inner.beat()
            return min(left, self.redraw)

    def before_fork(self) -> None:
        """End the thread."""
        with self.lock:
            thread = self._stopped()
        _join(thread)

    def after_fork_in_parent(self) -> None:
        """Start the thread again if it ran before."""
        with self.lock:
            if self._activities and self._thread is None:
                self._begin()

    def after_fork_in_child(self) -> None:
        """Forget the parent's activities, which are not those of a worker."""
        self.lock = threading.RLock()
        self._activities = []

    def _begin(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="kdplug-progress", daemon=True)
        self._thread.start()

    def _stopped(self) -> threading.Thread | None:
        """Ask the thread to end, and return it."""
        thread, self._thread = self._thread, None
        self._stop.set()
        return thread

    def _run(self, stop: threading.Event) -> None:
        wait = min(self.redraw, self.silence)
        while not stop.wait(wait):
            try:
                wait = self.check()
            except (OSError, ValueError, SystemExit):  # the stream is closed
                return


def _join(thread: threading.Thread | None) -> None:
    if thread is not None and thread is not threading.current_thread():  # the garbage collector may end an activity
        thread.join()


PULSE = Pulse()
os.register_at_fork(
    before=PULSE.before_fork,
    after_in_parent=PULSE.after_fork_in_parent,
    after_in_child=PULSE.after_fork_in_child,
)


class Busy:
    """Reports on stderr, about every ten seconds of silence, what is done and for how long.

    With finished items it reports their number instead and, with ``total``, the time left.
    """

    is_drawn = False

    def __init__(self, doing: str, total: int | None, unit: str) -> None:
        self._doing, self._total, self._unit = doing, total, unit
        self._start = time.monotonic()
        self._done = 0

    def add(self, count: int) -> None:
        """Count finished items."""
        self._done += count

    def beat(self) -> None:
        """Print a line."""
        passed = time.monotonic() - self._start
        if not self._done:
            text = f"{passed:.0f} s"
        elif not self._total:
            text = f"{self._done} {self._unit}"
        else:
            left = duration(max(0, self._total - self._done) * passed / self._done)
            text = f"{self._done}/{self._total} {self._unit}, {left} left"
        print(f"{self._doing}: {text}", file=sys.stderr, flush=True)


@contextmanager
def busy(doing: str, *, total: int | None = None, unit: str = "items", shown: bool | None = None) -> Iterator[Busy]:
    """Report the block as ``doing`` if it takes long; count its finished items with the yielded object's ``add``.

    By default a block is ``shown`` inside another activity that is. Only the main process shows anything.
    """
    activity = Busy(doing, total, unit)
    if not (PULSE.is_running if shown is None else shown and os.environ.get("RANK", "0") in ("", "0")):
        yield activity
        return
    PULSE.start(activity)
    try:
        yield activity
    finally:
        PULSE.end(activity)


def counted(items: Iterable[T], doing: str, *, total: int | None = None, unit: str = "batches") -> Iterator[T]:
    """Yield ``items`` and, inside an activity that is shown, report the finished ones if they take long."""
    with busy(doing, total=total, unit=unit) as activity:
        for item in items:
            yield item
            activity.add(1)


def duration(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
