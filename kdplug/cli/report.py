"""``kdplug report``: write report.html of a run again, or one page that compares several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdplug.cli.terminal import report_errors


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Output folder of a completed run. Several folders are compared."),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Page to write. The default is report.html in the run's folder."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write a run's report.html again from its files, or one page that compares several runs.

    The page is a single file that makes no network requests. Several runs require --out.
    """
    with report_errors(debug=debug):
        from kdplug.errors import ConfigError
        from kdplug.report.page.write import write_comparison, write_report

        if len(runs) > 1 and out is None:
            raise ConfigError(f"is required to compare {len(runs)} runs, such as --out comparison.html", field="--out")
        if out is not None and out.is_dir():
            raise ConfigError(
                f"{str(out)!r} is a folder. Name a file, such as {str(out / 'report.html')!r}", field="--out"
            )
        written = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or Path())
        typer.echo(f"Written: {written}")
