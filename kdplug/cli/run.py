"""``kdplug run``: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdplug.cli.recipe_file import chosen_recipe
from kdplug.cli.terminal import report_errors
from kdplug.errors import ConfigError

_MOST_SEEDS = 1000


def read_seeds(text: str) -> int | list[int]:
    """Return the seeds of ``--seeds``: ``3``, ``0..4`` or ``0,2,5``.

    Raises: ``ConfigError`` for anything else.
    """
    first, dots, last = text.partition("..")
    if dots and first.strip().isdecimal() and last.strip().isdecimal() and len(last) < _LONGEST_SEED:
        found = range(int(first), int(last) + 1)
        if 0 < len(found) <= _MOST_SEEDS:
            return list(found)
    parts = [part.strip() for part in text.split(",")]
    if not dots and all(part.isdecimal() and len(part) < _LONGEST_SEED for part in parts):
        return list(map(int, parts)) if len(parts) > 1 else int(parts[0])
    raise ConfigError(
        f"must be a count (3), a range (0..4) or a list (0,2,5) of at most {_MOST_SEEDS:,} seeds, got {text!r}",
        field="--seeds",
    )


_LONGEST_SEED = 20

_CONTROL_FAILED = 1
"""Exit status of a run whose results are complete except for a control that failed."""


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (.yaml, .yml or .json).")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one value, such as training.num_epochs=3. May be repeated."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", metavar="D", help="Override the recipe's output_dir.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Override the recipe's seed.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="SEEDS",
            help="Override the students' seeds: a count (3 means the recipe's seed and the next two), a range (0..4), or a list (0,2,5).",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            help="Number of students to train at the same time. On a CPU the results do not depend on it.",
        ),
    ] = 1,
    locked: Annotated[
        Path | None,
        typer.Option(
            "--locked",
            metavar="RECORD",
            help="kdplug-run.json of an earlier run. The run fails if a version, plugin or setting differs from it.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume an interrupted run in the same folder. On a CPU the results are identical to those of an "
            "uninterrupted run.",
        ),
    ] = False,
    resume_changed: Annotated[
        bool, typer.Option("--resume-changed", help="Resume even if the recipe or a version changed.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete the results and checkpoints of an earlier run in the same folder."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run a recipe: train the teacher if necessary, distil it into a student, and compare the results.

    The comparison includes the teacher and the same student trained without distillation. With at least three seeds, it
    also states whether distillation improved the student.
    """
    with report_errors(debug=debug):
        from kdplug.cli.terminal import console
        from kdplug.engine.observe.activity import busy
        from kdplug.host.lock import check_environment

        if locked is not None:
            check_environment(locked)  # before any plugin is imported
        with busy("Importing torch", shown=True):
            from kdplug.recipes.run import ControlError, run_recipe

        given = {
            "output_dir": None if output_dir is None else str(output_dir),
            "seed": seed,
            "seeds": None if seeds is None else read_seeds(seeds),
        }
        with chosen_recipe(recipe, changes, **given) as chosen:
            try:
                run_recipe(
                    chosen,
                    jobs=jobs,
                    console=console(),
                    locked=locked,
                    resume=resume,
                    resume_changed=resume_changed,
                    overwrite=overwrite,
                )
            except ControlError:
                with report_errors(debug=debug, exit_code=_CONTROL_FAILED):
                    raise
