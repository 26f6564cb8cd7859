"""``kdplug plugins check``: what is wrong with the installed plugins, and what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kdplug.cli.failure import told

if TYPE_CHECKING:
    from kdplug.host.finding import Finding

_STYLES = {"error": "bold red", "warning": "yellow"}


def check(
    dist: Annotated[str | None, typer.Argument(help="Only this distribution.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Import every plugin and report problems with their fixes. Exits with status 1 on an error."""
    from kdplug.host.check import check_plugins

    with told():
        found = check_plugins(dist)
    if as_json:
        _print_json(found)
    else:
        _print(found)
    if any(one.level == "error" for one in found):
        raise typer.Exit(1)


def _print_json(found: list[Finding]) -> None:
    import json
    from dataclasses import asdict

    typer.echo(json.dumps([asdict(one) for one in found], indent=2))


def _print(found: list[Finding]) -> None:
    from rich.text import Text

    from kdplug.cli.terminal import console
    from kdplug.host.active import active
    from kdplug.host.name import printable

    out = console()
    for one in found:
        what, where, mend = map(printable, (one.what, one.where, one.mend))
        head = Text.assemble((f"{one.level:<8}", _STYLES[one.level]), (one.dist, "bold"), f" [{one.check}] {what}")
        for line in (head, Text(f"        in    {where}"), Text(f"        fix   {mend}")):
            out.print(line, soft_wrap=True)
        out.print()
    errors = sum(one.level == "error" for one in found)
    counts = f"{errors} error{'s' * (errors != 1)}, {len(found) - errors} warning{'s' * (len(found) - errors != 1)}"
    plugins = len(active().dists)
    out.print(
        f"{plugins} plugin{'s' * (plugins != 1)} installed: {counts if found else 'no problems'}", highlight=False
    )
