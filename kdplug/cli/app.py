"""Define the ``kdplug`` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

import kdplug
from kdplug.cli import cache, plugins
from kdplug.cli.new import new
from kdplug.cli.plan import plan
from kdplug.cli.report import report
from kdplug.cli.run import run
from kdplug.cli.schema import schema
from kdplug.cli.terminal import Command, Group
from kdplug.cli.verdict import verdict

app = typer.Typer(
    name="kdplug",
    cls=Group,
    help="Knowledge distillation for PyTorch in which every loss, projection and schedule is a plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", cls=Command)(run)
app.command("plan", cls=Command)(plan)
app.command("verdict", cls=Command)(verdict)
app.command("report", cls=Command)(report)
app.command("new", cls=Command)(new)
app.command("schema", cls=Command)(schema)
app.add_typer(cache.app, name="cache")
app.add_typer(plugins.app, name="plugins")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdplug {kdplug.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``kdplug`` command."""
    app()
