"""Progress display of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_LINES = 10
_REFRESH_SECONDS = 0.5
_SILENCE_SECONDS = 10.0
"""Interval between the lines that a longer operation prints."""

T = TypeVar("T")


class Display(Protocol):
    """Displays a run. ``step`` is called after every optimizer step and must be cheap."""

    def note(self, text: str) -> None: ...

    def step(self, step: int) -> None: ...

    def losses(self, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def display(
    total_steps: int, *, shown: bool, console: Console | None = None, doing: str = "distilling"
) -> Iterator[Display]:
    """Yield a progress bar on a terminal, plain lines elsewhere (both on stderr), or nothing if not ``shown``."""
    console = console or Console(stderr=True)
    made: Display = Nothing()
    if shown:
        made = Bar(total_steps, console, doing) if console.is_terminal else Lines(total_steps, console)
    try:
        yield made
    finally:
        made.close()


class Nothing:
    """Displays nothing."""

    def note(self, text: str) -> None:
        pass

    def step(self, step: int) -> None:
        pass

    def losses(self, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Pace:
    """Steps per second since the display started. Steps of an earlier run that this one resumes are not counted."""

    def __init__(self) -> None:
        self.start = self.now = time.monotonic()
        self.before: int | None = None
        """The number of steps before this run, known from its first step on."""

    def rate(self, step: int) -> float:
        """Return the steps per second up to ``step``, which is complete."""
        self.now = time.monotonic()
        return (step - (self.before or 0)) / max(self.now - self.start, 1e-9)


class Lines:
    """One line per tenth of the run or ten seconds, and one for the last step of a run that ends early."""

    def __init__(self, total_steps: int, console: Console) -> None:
        self._total = total_steps
        self._shown = 0
        self._step: int | None = None
        self._printed: int | None = None
        self._console = console
        self._losses = ""
        self._pace = Pace()
        self._due = self._pace.start + _SILENCE_SECONDS

    def note(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)

    def step(self, step: int) -> None:
        self._step = step
        if self._pace.before is None:
            self._pace.before = step - 1
        part = step * _LINES // self._total
        if part > self._shown or time.monotonic() >= self._due:
            self._shown = part
            self._print(step)

    def losses(self, values: Mapping[str, float]) -> None:
        self._losses = losses_text(values)

    def close(self) -> None:
        if self._step is not None and self._step != self._printed:
            self._print(self._step)

    def _print(self, step: int) -> None:
        self._printed = step
        rate = self._pace.rate(step)
        self._due = self._pace.now + _SILENCE_SECONDS
        left = duration((self._total - step) / rate)
        line = f"step {step}/{self._total}  {rate:.3g} steps/s  {left} left  {self._losses}".rstrip()
        print(line, file=self._console.file, flush=True)  # 100 times faster than rich for a line without colours


class Bar:
    """A progress bar with rate and time left, redrawn at most a few times per second."""

    def __init__(self, total_steps: int, console: Console, doing: str = "distilling") -> None:
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(doing, total=total_steps, losses="", rate="")
        self._bar.start()
        self._due = 0.0
        self._step = 0
        self._pace = Pace()

    def note(self, text: str) -> None:
        self._bar.console.print(Text(text), soft_wrap=True)

    def step(self, step: int) -> None:
        self._step = step
        if self._pace.before is None:
            self._pace.before = step - 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REFRESH_SECONDS
            self._draw()

    def losses(self, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, losses=losses_text(values))

    def close(self) -> None:
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        rate = f"{self._pace.rate(self._step):.3g} steps/s" if self._step else ""
        self._bar.update(self._task, completed=self._step, rate=rate, refresh=True)


def duration(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


class Heartbeat:
    """Reports the progress of a cache or an evaluation with ``say``, every ten seconds, with the time left."""

    def __init__(self, doing: str, say: Callable[[str], None], total: int | None, unit: str) -> None:
        self._doing, self._say, self._total, self._unit = doing, say, total, unit
        self._start = time.monotonic()
        self._due = self._start + _SILENCE_SECONDS
        self._done = 0

    def add(self, count: int) -> None:
        """Count finished items."""
        self._done += count
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _SILENCE_SECONDS
        if not self._total:
            self._say(f"{self._doing}: {self._done} {self._unit}")
            return
        left = duration(max(0, self._total - self._done) * (now - self._start) / max(1, self._done))
        self._say(f"{self._doing}: {self._done}/{self._total} {self._unit}, {left} left")


def heartbeat(
    items: Iterable[T], doing: str, say: Callable[[str], None], *, total: int | None = None, unit: str = "batches"
) -> Iterator[T]:
    """Yield ``items`` and report those that are finished with ``say``, every ten seconds."""
    beat = Heartbeat(doing, say, total, unit)
    for item in items:
        yield item
        beat.add(1)


def losses_text(values: Mapping[str, float]) -> str:
    """Format losses as ``total_loss 1.23  kd_loss 0.98``."""
    return "  ".join(f"{name.removeprefix('unweighted_')} {value:.4g}" for name, value in values.items())
