"""``kdplug cache``: the teacher's outputs, kept once, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kdplug.cli.failure import told
from kdplug.host.name import printable

MAKE = "make"


class RecipeFirst(TyperGroup):
    """``kdplug cache RECIPE …`` is ``kdplug cache make RECIPE …``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command there that is left out."""
        is_recipe = bool(args) and not args[0].startswith("-") and args[0] not in self.commands
        return super().parse_args(ctx, [MAKE, *args] if is_recipe else args)


app = typer.Typer(
    cls=RecipeFirst,
    help="Precompute a recipe's teacher outputs (kdplug cache RECIPE --out DIR), or inspect a cache.",
    no_args_is_help=True,
)


@app.command(MAKE)
def make(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a .yaml or .json file.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of the cache.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value: training.batch_size=64. May be repeated."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run the teacher on the distillation data and store its outputs; resumes an interrupted command."""
    with told(debug=debug):
        from kdplug.cli.terminal import console
        from kdplug.config.recipe import Recipe
        from kdplug.recipes.cache import cache_recipe

        cache_recipe(Recipe.from_file(recipe).with_overrides(changes or []), out, console=console())


@app.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of a cache.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Read every shard and compare its checksum: exit status 2 for any damage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show size, kept mass, coverage, codec and fingerprints.

    Exits with status 2 for a damaged manifest or record, or a shard of another size; --check also finds damage inside a shard.
    """
    with told():
        from kdplug.cli.terminal import console
        from kdplug.engine.cache_report import CacheReport
        from kdplug.report.cache import cache_lines

        found = CacheReport.read(folder, checks=check)
        if as_json:
            typer.echo(printable(json.dumps(found.to_data(), indent=2, ensure_ascii=False, allow_nan=False)))
            return
        out = console()
        for line in cache_lines(found):
            out.print(line, highlight=False)
