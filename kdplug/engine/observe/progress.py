"""Progress display of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from kdplug.engine.observe.activity import PULSE, duration

_LINES = 10
_REFRESH_SECONDS = 0.5


class Whole:
    """Progress over several runs, of ``total`` optimizer steps together. Steps of earlier processes do not affect the rate."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._before = 0
        self._taken = 0
        self._start = time.monotonic()

    def text(self, step: int, before: int) -> str:
        """Return the progress if the current run, which started after ``before`` steps, has completed ``step`` of them."""
        done = self._before + step
        rate = (self._taken + step - before) / max(time.monotonic() - self._start, 1e-9)
        left = duration((self._total - done) / rate) if rate > 0 else "unknown time"
        return f"all runs: {done}/{self._total}, {left} left"

    def end(self, step: int, before: int, total_steps: int) -> None:
        """Count a run that ended after ``step`` of ``total_steps``."""
        self._before += total_steps
        self._taken += step - before


_WHOLE: list[Whole] = []


@contextmanager
def several_runs(total_steps: int, *, shown: bool) -> Iterator[None]:
    """Let the displays of the runs in the block also report the progress over all of them, if ``shown``."""
    if not shown:
        yield
        return
    _WHOLE.append(Whole(total_steps))
    try:
        yield
    finally:
        _WHOLE.pop()


class Display(Protocol):
    """Displays a run. ``step`` is called after every optimizer step and must be cheap."""

    def note(self, text: str) -> None: ...

    def step(self, step: int) -> None: ...

    def losses(self, values: Mapping[str, float], step: int) -> None: ...

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

    def losses(self, values: Mapping[str, float], step: int) -> None:
        pass

    def close(self) -> None:
        pass


class Pace:
    """Steps per second since the display started. Steps of an earlier run that this one resumes are not counted."""

    def __init__(self) -> None:
        self.start = self.now = time.monotonic()
        self.before: int | None = None
        """The number of steps before this run, known from its first step on."""
        self.whole = _WHOLE[-1] if _WHOLE else None
        """The progress over all runs, if this is one of several."""

    def rate(self, step: int) -> float:
        """Return the steps per second up to ``step``, which is complete."""
        self.now = time.monotonic()
        return (step - (self.before or 0)) / max(self.now - self.start, 1e-9)

    def of_all(self, step: int) -> str:
        """Return the progress over all runs, empty if this is the only one."""
        return "" if self.whole is None else self.whole.text(step, self.before or 0)

    def end(self, step: int | None, total_steps: int) -> None:
        """Count this run among all."""
        if self.whole is not None:
            self.whole.end(step or total_steps, (self.before or 0) if step else total_steps, total_steps)


class Lines:
    """One line per tenth of the run or ten seconds, and one for the last step of a run that ends early.

    Losses are printed once, with their step if it is an earlier one.
    """

    is_drawn = False

    def __init__(self, total_steps: int, console: Console) -> None:
        self._total = total_steps
        self._shown = 0
        self._step: int | None = None
        self._printed: int | None = None
        self._console = console
        self._losses: dict[str, tuple[float, int]] = {}
        self._pace = Pace()
        PULSE.start(self)

    def beat(self) -> None:
        """Print the last step, or that the next one is still running."""
        if self._step is not None and self._step != self._printed:
            self._print(self._step)
            return
        if self._step == self._total:
            what = "finishing"
        else:
            next_one = "the first step" if self._step is None else f"step {self._step + 1}/{self._total}"
            what = f"{next_one} is running"
        self._write(f"{what}  {duration(time.monotonic() - self._pace.start)} elapsed")

    def note(self, text: str) -> None:
        self._write(text)

    def step(self, step: int) -> None:
        self._step = step
        if self._pace.before is None:
            self._pace.before = step - 1
        part = step * _LINES // self._total
        if part > self._shown:
            self._shown = part
            self._print(step)

    def losses(self, values: Mapping[str, float], step: int) -> None:
        with PULSE.lock:
            self._losses |= {name: (value, step) for name, value in values.items()}

    def close(self) -> None:
        PULSE.end(self)
        if self._step is not None and self._step != self._printed:
            self._print(self._step)
        self._pace.end(self._step, self._total)

    def _print(self, step: int) -> None:
        with PULSE.lock:
            if step == self._printed:
                return
            self._printed = step
            rate = self._pace.rate(step)
            left = duration((self._total - step) / rate)
            parts = [f"step {step}/{self._total}", f"{rate:.3g} steps/s", f"{left} left"]
            for at in dict.fromkeys(at for _, at in self._losses.values()):
                text = losses_text({name: value for name, (value, own) in self._losses.items() if own == at})
                parts.append(text if at == step else f"{text} (step {at})")
            self._losses = {}
            if whole := self._pace.of_all(step):
                parts.append(f"({whole})")
            self._write("  ".join(parts))

    def _write(self, text: str) -> None:
        with PULSE.lock:
            print(text, file=self._console.file, flush=True)  # 100 times faster than rich for a line without colours
            PULSE.printed = time.monotonic()


class Bar:
    """A progress bar with rate and time left, redrawn at most a few times per second."""

    is_drawn = True

    def __init__(self, total_steps: int, console: Console, doing: str = "distilling") -> None:
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
            TextColumn("{task.fields[whole]}", markup=False),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(doing, total=total_steps, losses="", rate="", whole="")
        self._bar.start()
        self._due = 0.0
        self._step, self._total = 0, total_steps
        self._pace = Pace()
        PULSE.start(self)

    def beat(self) -> None:
        """Redraw the elapsed time during a long step."""
        self._draw()

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

    def losses(self, values: Mapping[str, float], step: int) -> None:  # noqa: ARG002
        self._bar.update(self._task, losses=losses_text(values))

    def close(self) -> None:
        PULSE.end(self)
        self._draw()
        self._bar.stop()
        self._pace.end(self._step or None, self._total)

    def _draw(self) -> None:
        PULSE.printed = time.monotonic()
        rate = f"{self._pace.rate(self._step):.3g} steps/s" if self._step else ""
        whole = self._pace.of_all(self._step)
        self._bar.update(self._task, completed=self._step, rate=rate, whole=whole, refresh=True)


def losses_text(values: Mapping[str, float]) -> str:
    """Format losses as ``total_loss 1.23  kd_loss 0.98``."""
    return "  ".join(f"{name.removeprefix('unweighted_')} {value:.4g}" for name, value in values.items())
