"""``kdplug cache``: precompute teacher outputs and inspect a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdplug.cli.recipe_file import chosen_recipe
from kdplug.cli.terminal import Command, Group, report_errors
from kdplug.host.name import printable

if TYPE_CHECKING:
    from kdplug.engine.cache.report import CacheReport


def cache_lines(report: CacheReport) -> Iterator[RenderableType]:
    """Return the lines and tables to print, in order."""
    state = "complete" if report.is_complete else f"incomplete: {report.written} of {report.shards} shards"
    yield Text(f"{report.path}: {state}")
    yield _table("kept", _kept(report))
    yield _table("of", {name: _short(value) for name, value in report.fingerprint.items()})


def _kept(report: CacheReport) -> dict[str, str]:
    from kdplug.engine.cache.summary import size

    tally, item = report.tally, report.bytes_per_item
    spec, temperature = report.fingerprint.get("codec"), report.fingerprint.get("temperature")
    highest = max(temperature) if isinstance(temperature, list) else temperature
    at = "" if highest is None else f" at temperature {highest:g}"
    rows = {
        "examples": f"{report.examples:,} of {report.count:,}",
        "outputs": ", ".join(sorted(report.layout.names)),
        "bytes": size(report.bytes),
        "codec": "none" if spec is None else _short(spec),
        "classes": ", ".join(f"{count:,}" for count in report.classes),
    }
    if item is not None:
        rows |= {
            "items": f"{tally.items:,} of {tally.positions:,} ({tally.coverage:.1%} covered)",
            "bytes per item": f"{item:,.1f}",
            "bytes stored once": size(report.shared_bytes) if report.shared_bytes else "",
            f"kept mass{at}": f"{tally.kept_mass:.4f} on average, {tally.lowest:.4f} at least",
        }
    return {name: row for name, row in {**rows, "largest error": f"{tally.error:.3g}"}.items() if row}


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, row in rows.items():
        table.add_row(name, row)
    return table


def _short(value: Any) -> str:
    """Format plain data on one line; a long mapping of digests is shown as their number."""
    if isinstance(value, Mapping):
        inner = {key: _short(one) for key, one in value.items()}
        if len(inner) > _SHOWN:
            return f"{len(inner)} digests"
        return ", ".join(f"{key}: {one}" for key, one in inner.items())
    return str(value)


_SHOWN = 6


MAKE = "make"


class RecipeFirst(Group):
    """Command group in which ``kdplug cache RECIPE …`` means ``kdplug cache make RECIPE …``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the omitted ``make``."""
        is_recipe = bool(args) and not args[0].startswith("-") and args[0] not in self.commands
        return super().parse_args(ctx, [MAKE, *args] if is_recipe else args)


app = typer.Typer(
    cls=RecipeFirst,
    help="Precompute a recipe's teacher outputs, or inspect a teacher cache. kdplug cache RECIPE is short for "
    "kdplug cache make RECIPE.",
    no_args_is_help=True,
)


@app.command(MAKE, cls=Command)
def make(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (.yaml, .yml or .json).")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Cache folder to write.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one value, such as training.batch_size=64. May be repeated."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run the teacher on the distillation data and store its outputs. To continue after an interruption, run the same command again."""
    with report_errors(debug=debug):
        from kdplug.cli.terminal import console
        from kdplug.engine.observe.activity import busy

        with busy("Importing torch", shown=True):
            from kdplug.recipes.cache import cache_recipe

        with chosen_recipe(recipe, changes) as chosen:
            cache_recipe(chosen, out, console=console())


@app.command("show", cls=Command)
def show(
    folder: Annotated[Path, typer.Argument(help="Cache folder.")],
    *,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read every shard and verify its checksum. Exits with status 2 on any damage."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show the size, kept probability mass, coverage, codec and fingerprints of a cache.

    Exits with status 2 if the manifest or a record is damaged, or a shard has the wrong size.
    Use --check to detect damage inside a shard.
    """
    with report_errors():
        from kdplug.cli.terminal import console
        from kdplug.engine.observe.activity import busy

        with busy("Reading the teacher cache", shown=True):
            from kdplug.engine.cache.report import CacheReport

            found = CacheReport.read(folder, checks=check)
        if as_json:
            typer.echo(printable(json.dumps(found.to_data(), indent=2, ensure_ascii=False, allow_nan=False)))
            return
        out = console()
        for line in cache_lines(found):
            out.print(line, highlight=False)
