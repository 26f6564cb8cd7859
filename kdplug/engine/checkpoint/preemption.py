"""Preemption: SIGTERM and SIGINT end a run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """The signal that stops the run, if any was received. A second signal ends the process at once, as without kdplug."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether any process received a signal. Every process must call it at the same step."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        received = torch.tensor(self.signal or 0, device=accelerator.device)
        strongest = int(accelerator.gather(received.reshape(1)).max())
        self.signal = strongest or None
        return self.signal is not None

    def leave(self) -> None:
        """Exit as usual for the signal: ``KeyboardInterrupt`` for SIGINT, else ``SystemExit`` with 128 plus its number."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or 0))


@contextmanager
def preemption() -> Iterator[Preemption]:
    """Handle signals during a run. Outside the main thread, where Python allows no handler, do nothing."""
    heard = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, _frame: FrameType | None) -> None:
        heard.signal = number
        _restore(before)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield heard
    finally:
        _restore(before)


def _restore(before: Mapping[signal.Signals, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
