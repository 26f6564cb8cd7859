"""``kdplug schema``: print the JSON Schema of a recipe, for editors."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from typing import Annotated

import typer

from kdplug.cli.terminal import report_errors
from kdplug.host.name import printable


class Part(StrEnum):
    """Parts of a recipe that have a schema."""

    RECIPE = "recipe"
    DISTILLATION = "distillation"
    TRAINING = "training"


def schema(
    kind: Annotated[
        Part,
        typer.Option(
            "--kind", metavar="K", help="Part to print: recipe, distillation (a DistillationConfig) or training."
        ),
    ] = Part.RECIPE,
    names: Annotated[
        bool, typer.Option("--names", help="Do not import plugins. The schema then checks names but not settings.")
    ] = False,
) -> None:
    """Print the JSON Schema (draft-07) of a recipe, with the settings of every installed plugin."""
    with report_errors():
        from kdplug.config.schema.build import every_entry, no_entry, schema_of
        from kdplug.host.active import active

        with redirect_stdout(sys.stderr):  # keep the output of plugins out of the JSON
            if not names:
                active().load_hooks()
            found = schema_of(kind.value, no_entry if names else every_entry)
        for error in found.errors:
            active().notice(f"the schema lacks the settings of an entry: {error}")
    typer.echo(printable(json.dumps(found.data, indent=2, ensure_ascii=False, allow_nan=False)))
