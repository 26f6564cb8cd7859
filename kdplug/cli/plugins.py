"""``kdplug plugins``: list, inspect and check installed plugins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdplug.cli.new_plugin import new_plugin
from kdplug.cli.terminal import Command, Group, report_errors
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.host.active import active
from kdplug.host.entry import Entry
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.kind import KINDS, Kind
from kdplug.host.registry import REGISTRIES

if TYPE_CHECKING:
    from kdplug.host.check.finding import Finding


Status = Literal["ok", "shadowed", "ambiguous", "blocked", "incompatible", "broken"]

HOOKS = "hooks"
"""Kind under which hook plugins are listed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``kdplug plugins list``; ``error`` is the reason why the entry is broken or disabled.

    ``declares`` holds the declarations of a loss that was imported, otherwise ``None``.
    """

    name: str
    kind: str
    package: str
    version: str
    status: Status
    error: str | None = None
    declares: tuple[str, ...] | None = None


def read_kind(name: str) -> Kind:
    """Return the kind called ``name``: ``loss`` or ``losses``, ``weight-scheduler`` or ``weight_schedulers``.

    Raises: ``ConfigError`` that suggests the nearest kind.
    """
    by_name = {spelling: kind for kind in KINDS.values() for spelling in (kind.plural, kind.noun.replace(" ", "_"))}
    folded = name.casefold().replace("-", "_").replace(" ", "_")
    if folded not in by_name:
        nouns = ", ".join(kind.noun.replace(" ", "_") for kind in KINDS.values())
        raise ConfigError(f"unknown kind {name!r}.{did_you_mean(name, by_name)} Kinds: {nouns}", field="--kind")
    return by_name[folded]


def rows(kind: Kind | None = None, *, load: bool = False) -> list[Row]:
    """Return the entries of one kind or all kinds, sorted by kind, package and name.

    ``load`` imports each entry and hook plugin.
    """
    if load:
        active().load_hooks()
    kinds = [kind] if kind is not None else list(KINDS.values())
    found = [row for one in kinds for row in (*_offered(one, load=load), *_left_out(one))]
    return found + (list(_hook_plugins()) if kind is None else [])


def failure(entry: Entry) -> str | None:
    """Import an entry; return the error message, or ``None`` if it is usable."""
    try:
        entry.load()
        _ = entry.settings
    except KdplugError as error:
        return str(error)
    return None


def _offered(kind: Kind, *, load: bool) -> Iterator[Row]:
    registry = REGISTRIES[kind.plural]
    for entry in registry.entries():
        error = failure(entry) if load else None
        status: Status = "broken" if error else registry.status(entry)
        declared = _declared(entry) if load and not error else None
        yield Row(entry.name, kind.noun, entry.dist, entry.version, status, error, declared)


def _declared(entry: Entry) -> tuple[str, ...] | None:
    """Return the declarations of a loss, whose attributes are plugin code."""
    from kdplug.cli.sheet import declarations

    if entry.kind.plural != "losses":
        return None
    read = run_plugin_code(lambda: declarations(entry.load()), f"describing {entry.qualified!r}", entry.dist, "read")
    return None if read.value is None else tuple(read.value)


def _left_out(kind: Kind) -> Iterable[Row]:
    host = active()
    return [
        Row(
            point.name,
            kind.noun,
            dist.name,
            dist.version,
            "blocked" if dist in host.blocked else "incompatible",
            host.reason(dist),
        )
        for dist in host.left_out
        for point in dist.entry_points
        if point.group == kind.group
    ]


def _hook_plugins() -> Iterator[Row]:
    for plugin in active().hook_plugins:
        error = described(plugin.error) if plugin.error is not None else None
        yield Row(plugin.name, HOOKS, plugin.dist.name, plugin.dist.version, "broken" if error else "ok", error)


_STYLES = {"error": "bold red", "warning": "yellow"}


def check(
    dist: Annotated[str | None, typer.Argument(help="Check only this distribution.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
) -> None:
    """Import every plugin, and report problems and how to fix them. Exits with status 1 on an error."""
    from kdplug.host.check.check import check_plugins

    with report_errors():
        found = check_plugins(dist)
    if as_json:
        _print_findings(found)
    else:
        _print(found, dist)
    if any(one.level == "error" for one in found):
        raise typer.Exit(1)


def _print_findings(found: list[Finding]) -> None:
    import json
    from dataclasses import asdict

    typer.echo(json.dumps([asdict(one) for one in found], indent=2))


def _print(found: list[Finding], dist: str | None) -> None:
    from rich.text import Text

    from kdplug.cli.terminal import console
    from kdplug.host.active import active
    from kdplug.host.name import printable

    out = console()
    for one in found:
        what, where, fix = map(printable, (one.what, one.where, one.fix))
        head = Text.assemble((f"{one.level:<8}", _STYLES[one.level]), (one.dist, "bold"), f" [{one.check}] {what}")
        for line in (head, Text(f"        in    {where}"), Text(f"        fix   {fix}")):
            out.print(line, soft_wrap=True)
        out.print()
    errors = sum(one.level == "error" for one in found)
    counts = f"{errors} error{'s' * (errors != 1)}, {len(found) - errors} warning{'s' * (len(found) - errors != 1)}"
    plugins = len(active().dists)
    checked = printable(dist) if dist is not None else f"{plugins} plugin{'s' * (plugins != 1)} installed"
    out.print(f"{checked}: {counts if found else 'no problems'}", highlight=False, markup=False, soft_wrap=True)


app = typer.Typer(
    cls=Group, help="List, inspect and check installed plugins, or create a new one.", no_args_is_help=True
)
app.command("new", cls=Command)(new_plugin)
app.command("check", cls=Command)(check)

_COLOURS = {
    "ok": "green",
    "shadowed": "yellow",
    "ambiguous": "yellow",
    "blocked": "dim",
    "incompatible": "red",
    "broken": "bold red",
}

KindOption = Annotated[
    str | None, typer.Option("--kind", metavar="K", help="Show only entries of this kind, such as loss or task.")
]


@app.command("list", cls=Command)
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    kind: KindOption = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Import every entry, report failures, and list the properties that each loss declares, such as mean_over_items.",
        ),
    ] = False,
) -> None:
    """List installed entries: losses, projections, schedulers, tasks and other kinds."""
    with report_errors():
        found = rows(read_kind(kind) if kind is not None else None, load=load)
    if as_json:
        _print_json(found)
    else:
        _print_table(found)


@app.command("show", cls=Command)
def show_plugin(
    name: Annotated[
        str, typer.Argument(help="Entry name, bare (hidden_mse) or qualified (kdplug-presets:hidden_mse).")
    ],
    kind: KindOption = None,
) -> None:
    """Show the documentation, inputs, declarations, settings and source location of an entry."""
    from kdplug.cli.sheet import print_sheets
    from kdplug.cli.terminal import console

    with report_errors():
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
    shown = any(row.declares is not None for row in found)
    for column in ("name", "kind", "package", "version", "status", *(["declares"] if shown else [])):
        table.add_column(column, overflow="fold")
    for row in found:
        status = Text(row.status, style=_COLOURS[row.status])
        declared = [", ".join(row.declares or ())] if shown else []
        table.add_row(*map(escape, (row.name, row.kind, row.package, row.version)), status, *declared)
    out.print(table)
    for row in found:
        if row.status == "broken" and row.kind != HOOKS:  # a broken hook plugin was already reported by a warning
            out.print(Text.assemble(("broken: ", _COLOURS["broken"]), printable(row.error or "")), soft_wrap=True)
    blocked = {row.package: row.error for row in found if row.status == "blocked"}
    for package, reason in blocked.items():
        out.print(f"{package} is disabled by {reason}", markup=False, highlight=False, soft_wrap=True)
    incompatible = {row.package: row.error for row in found if row.status == "incompatible"}
    for package, reason in incompatible.items():
        out.print(f"{package} {reason}", markup=False, highlight=False, soft_wrap=True)
