"""``kdplug plugins``: what is installed, and what one entry asks for."""

from __future__ import annotations

from typing import Annotated

import typer

from kdplug.cli.check import check
from kdplug.cli.failure import told
from kdplug.cli.listing import HOOKS, Row, read_kind, rows
from kdplug.cli.new_plugin import new_plugin

app = typer.Typer(help="List, inspect and check installed plugins, or create a new one.", no_args_is_help=True)
app.command("new")(new_plugin)
app.command("check")(check)

_COLOURS = {
    "ok": "green",
    "shadowed": "yellow",
    "ambiguous": "yellow",
    "blocked": "dim",
    "incompatible": "red",
    "broken": "bold red",
}

KindOption = Annotated[
    str | None, typer.Option("--kind", metavar="K", help="Only this kind: loss, projection, task, …")
]


@app.command("list")
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    kind: KindOption = None,
    load: Annotated[bool, typer.Option("--load", help="Import every entry and report failures.")] = False,
) -> None:
    """List all installed entries: losses, projections, schedulers, tasks and other kinds."""
    with told():
        found = rows(read_kind(kind) if kind is not None else None, load=load)
    if as_json:
        _print_json(found)
    else:
        _print_table(found)


@app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="An entry, bare (hidden_mse) or qualified (kdplug-presets:hidden_mse).")],
    kind: KindOption = None,
) -> None:
    """Show what an entry does, its settings, its inputs and where it is defined."""
    from kdplug.cli.sheet import print_sheets
    from kdplug.cli.terminal import console

    with told():
        print_sheets(name, read_kind(kind) if kind is not None else None, console())


def _print_json(found: list[Row]) -> None:
    import json
    from dataclasses import asdict

    typer.echo(json.dumps([asdict(row) for row in found], indent=2))


def _print_table(found: list[Row]) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from kdplug.cli.terminal import console
    from kdplug.host.name import printable

    out = console()
    if not found:
        out.print("No plugin is installed: pip install kdplug-presets", highlight=False)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "kind", "package", "version", "status"):
        table.add_column(column, overflow="fold")
    for row in found:
        status = Text(row.status, style=_COLOURS[row.status])
        table.add_row(*map(escape, (row.name, row.kind, row.package, row.version)), status)
    out.print(table)
    for row in found:
        if row.status == "broken" and row.kind != HOOKS:  # of hook plugins a warning told; an entry's error names it
            out.print(Text.assemble(("broken: ", _COLOURS["broken"]), printable(row.error or "")), soft_wrap=True)
    blocked = {row.package: row.error for row in found if row.status == "blocked"}
    for package, reason in blocked.items():
        out.print(f"{package} is left out by {reason}", markup=False, highlight=False, soft_wrap=True)
    incompatible = {row.package: row.error for row in found if row.status == "incompatible"}
    for package, reason in incompatible.items():
        out.print(f"{package} {reason}", markup=False, highlight=False, soft_wrap=True)
