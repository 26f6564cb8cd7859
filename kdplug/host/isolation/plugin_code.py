"""Run plugin code in isolation: catch its exceptions, report slow imports, and restore changed process state."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, Literal, TypeVar

from kdplug.host.isolation.process_state import PROCESS, Changes, Functions, Snapshot
from kdplug.host.isolation.torch_state import ARITHMETIC, MODULE_HOOKS, RANDOM, seeds
from kdplug.host.name import printable

T = TypeVar("T")

Scope = Literal["import", "read", "hook", "build"]
Report = Callable[[str, str, str], None]
"""Callback with a distribution, the action of its code, and the global state that it changed."""

SLOW_SECONDS = 10.0
"""Seconds after which an import is reported while it runs."""

_running: ContextVar[str | None] = ContextVar("running", default=None)

_ALL = (*ARITHMETIC, *MODULE_HOOKS, *PROCESS)
_TABLES = {"import": _ALL, "read": _ALL, "hook": ARITHMETIC, "build": ARITHMETIC}
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
]


@dataclass(slots=True)
class Outcome(Generic[T]):
    """Return value of plugin code, or the exception that it raised, including ``SystemExit``."""

    value: T | None = None
    error: BaseException | None = None


def run_plugin_code(
    call: Callable[[], T], doing: str, dist: str, scope: Scope, report: Report | None = None
) -> Outcome[T]:
    """Call ``call``, which runs code of ``dist``, and restore the process state that it changed.

    ``doing`` describes the action in messages. The scopes ``import`` and ``read`` (of a signature, for example) restore
    all state, and ``import`` also detects replaced functions. ``hook`` restores the state that affects results, and so
    does ``build``, except that random generators keep advancing, since a loss may draw its parameters; they are
    restored if the code seeds torch.

    Exceptions of signal handlers, such as ``KeyboardInterrupt`` at Ctrl-C, are re-raised even if the code caught them.
    All other exceptions are returned.
    """
    before, random, seeded = Snapshot(_TABLES[scope]), Snapshot(RANDOM), seeds()
    is_run = scope in ("hook", "build")
    functions = Functions() if scope == "import" else None
    changes, done, outer = Changes(), Outcome[T](), _running.set(dist)
    with _signals(changes, restores=not is_run) as from_signals, _named_when_slow(doing, dist, scope):
        try:
            done.value = call()
        except BaseException as error:  # an exception of any kind must affect that plugin only
            done.error = error
    _running.reset(outer)
    before.restore(changes)
    if functions is not None:
        changes.left += functions.replaced()
    if scope != "build" or seeds() != seeded:
        random.restore(changes, reports_draws=is_run)
    if from_signals:
        raise from_signals[0]
    _tell(changes, doing, dist, report or _report)
    return done


def running_plugin() -> str | None:
    """Return the distribution whose code is running, or ``None``."""
    return _running.get()


def described(error: BaseException) -> str:
    """Format the type and text of an error; the text comes from plugin code and may fail."""
    try:
        text = str(error)
    except (Exception, SystemExit, GeneratorExit):
        text = "(its message cannot be read)"
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def is_first_process() -> bool:
    """Return whether this is the first process of a run, the only one that prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def _tell(changes: Changes, doing: str, dist: str, report: Report) -> None:
    restored = [f"{', '.join(changes.restored)} (restored)"] if changes.restored else []
    left = [f"{', '.join(changes.left)} (not restored)"] if changes.left else []
    if restored or left:
        report(dist, doing, "; ".join(restored + left))


def _warn(dist: str, doing: str, changed: str) -> None:
    """Report a side effect if no host is active."""
    warnings.warn(f"{doing} changed global state: {changed} ({dist})", stacklevel=2)


_report: Report = _warn


def report_side_effects(report: Report) -> None:
    """Pass side effects of plugin code to ``report`` from now on."""
    global _report  # noqa: PLW0603  one receiver per process
    _report = report


@contextmanager
def _signals(changes: Changes, *, restores: bool) -> Iterator[list[BaseException]]:
    """Collect the exceptions of signal handlers. With ``restores``, restore replaced handlers.

    Python runs handlers in the main thread only, so other threads have none to collect.
    """
    raised: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield raised
        return
    arrived: list[int] = []

    def noting(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def note(number: int, frame: FrameType | None) -> Any:
            arrived.append(number)
            try:
                return handler(number, frame)
            except BaseException as error:
                raised.append(error)
                raise

        return note

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    noted = {number: noting(handler) for number, handler in before.items() if callable(handler)}
    for number, handler in noted.items():
        signal.signal(number, handler)
    try:
        yield raised
    finally:
        replaced = [
            number for number in _SIGNALS if signal.getsignal(number) not in (noted.get(number), before[number])
        ]
        for number in (*noted, *replaced):
            is_ours = signal.getsignal(number) is noted.get(number)
            if before[number] is not None and (is_ours or (restores and not arrived)):
                signal.signal(number, before[number])
        if replaced and restores and not arrived:
            changes.restored.append("signal handlers")


@contextmanager
def _named_when_slow(doing: str, dist: str, scope: Scope) -> Iterator[None]:
    """Report a slow import on standard error while it runs, with the command that disables the plugin."""
    if scope in ("hook", "build") or not is_first_process():
        yield
        return
    message = (
        f"kdplug: {doing} has taken {SLOW_SECONDS:g} s so far. To run without this plugin, set KDPLUG_PLUGINS=-{dist}\n"
    )
    timer = threading.Timer(SLOW_SECONDS, sys.stderr.write, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
