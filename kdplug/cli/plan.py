"""``kdplug plan``: what a recipe would do."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from kdplug.cli.failure import told
from kdplug.host.name import printable

EXIT_CODE = 1


def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a .yaml or .json file.")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value: training.num_epochs=3. May be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Preview a run without training: terms, matches, memory and warnings. Exits with status 1 on an error."""
    with told(debug=debug, exit_code=EXIT_CODE):
        from kdplug.cli.terminal import console
        from kdplug.config.recipe import Recipe
        from kdplug.recipes.plan import plan_recipe
        from kdplug.report.plan import plan_lines

        with redirect_stdout(sys.stderr):  # what a task prints when it builds its models is no part of the plan
            found = plan_recipe(Recipe.from_file(recipe).with_overrides(changes or []))
        if as_json:
            typer.echo(printable(json.dumps(found.to_data(), indent=2, ensure_ascii=False, allow_nan=False)))
            return
        out = console()
        for line in plan_lines(found):
            out.print(line, soft_wrap=not hasattr(line, "columns"), highlight=False)
