"""Console and error output of the command line."""

from __future__ import annotations

import errno
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from kdplug.errors import KdplugError, RunError
from kdplug.host.host import PluginWarning
from kdplug.host.name import printable

_WIDE = 200


def console() -> Console:
    """Return a console on standard output; if that is not a terminal, the console is wide enough for every table."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDE)


class Command(TyperCommand):
    """A command whose help shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with an empty metavar for each flag."""
        return _without_flag_types(super().get_params(ctx))


class Group(TyperGroup):
    """A command group whose help shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with an empty metavar for each flag."""
        return _without_flag_types(super().get_params(ctx))


def _without_flag_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


EXIT_CODE = 2
_SIGNALLED = 128
_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))


@contextmanager
def report_errors(*, debug: bool = False, exit_code: int = EXIT_CODE) -> Iterator[None]:
    """Print kdplug errors and plugin warnings without a traceback.

    ``SystemExit`` counts as an error, since only plugin code raises it (a loss that calls ``exit``, for example),
    unless a signal ended the run or the reader of the output closed it (``kdplug plan … | head``).

    Raises: ``typer.Exit`` with ``exit_code`` in place of a ``KdplugError``, or of an ``OSError`` from a full or
    read-only disk; the error itself if ``debug`` is true.
    """
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, PluginWarning):
                _say("warning", str(message), "yellow")
            else:
                usual(message, category, *rest, **more)

        warnings.showwarning = show
        try:
            yield
        except KdplugError as error:
            if debug:
                raise
            _say("error", str(error), "bold red")
            raise typer.Exit(exit_code) from error
        except OSError as error:
            if debug or error.errno not in _DISK:
                raise
            _say("error", f"cannot write {error.filename or 'a file'}: {error.strerror}", "bold red")
            raise typer.Exit(exit_code) from error
        except SystemExit as wanted:
            if _ends_normally(wanted):
                raise
            place = traceback.extract_tb(wanted.__traceback__)[-1]
            exits = RunError(f"{place.filename}:{place.lineno} called exit({wanted.code!r})")
            if debug:
                raise exits from wanted
            _say("error", str(exits), "bold red")
            raise typer.Exit(exit_code) from wanted


def _ends_normally(wanted: SystemExit) -> bool:
    """Return whether the exit was caused by a signal, or by rich on a closed pipe."""
    is_signal = isinstance(wanted.code, int) and wanted.code > _SIGNALLED
    return is_signal or isinstance(wanted.__context__, BrokenPipeError)


def _say(word: str, message: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((f"{word}: ", style), printable(message)), soft_wrap=True)
