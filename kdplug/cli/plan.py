"""``kdplug plan``: preview a recipe without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdplug.cli.recipe_file import chosen_recipe
from kdplug.cli.terminal import report_errors
from kdplug.host.name import printable

if TYPE_CHECKING:
    from kdplug.recipes.preview.match import PlannedMatch
    from kdplug.recipes.preview.run_plan import PlannedBalancer, PlannedStage, RunPlan


_STAGES = {
    "teacher": "training the teacher",
    "no_teacher": "training the same student without distillation",
    "distilled": "distilling the student",
    "shuffled": "distilling it from shuffled teacher outputs",
}


def plan_lines(plan: RunPlan) -> Iterator[RenderableType]:
    """Return the lines and tables to print, in order."""
    yield Text(f"{plan.task} on {plan.device}, {plan.precision}, batches of {plan.batch_size}")
    yield Text(printable(plan.about))
    if (teacher := _teacher(plan)) is not None:
        yield Text(printable(teacher))
    yield Text("")
    for stage in plan.stages:
        yield Text(_title(stage))
        yield from _lines(stage.plan)
        yield Text(f"optimizer steps: {stage.plan.steps['distilled']}; {_evaluations(stage.plan)}")
        yield Text("")
    if plan.stages:
        yield Text(f"all {len(plan.stages)} stages, whose steps the student without distillation takes too:")
    else:
        yield from _lines(plan)
    yield from _totals(plan)
    yield Text("")
    yield from _warnings(plan)


def _title(stage: PlannedStage) -> str:
    start = "a new student" if stage.start is None else f"the student of {stage.start}"
    teacher = "the teacher of the task" if stage.teacher is None else f"the student of {stage.teacher}"
    frozen = f"; {stage.frozen:,} parameters frozen ({', '.join(stage.freeze)})" if stage.freeze else ""
    return printable(f"stage {stage.name}: {start} learns from {teacher}{frozen}")


def _lines(plan: RunPlan) -> Iterator[RenderableType]:
    """Return the lines and tables of one distillation."""
    from kdplug.report.table import temperature_line, terms_table

    if any(
        term.temperature is not None for term in plan.config.terms or ()
    ):  # resolved terms have it if their loss does
        yield Text(temperature_line(plan.config))
    yield terms_table(plan.config, [term.name for term in plan.terms])
    yield _terms(plan)
    if plan.balancer is not None:
        yield Text(_balancer(plan.balancer))
    if plan.steps["teacher"]:
        yield Text(
            "The teacher is still untrained here, so the values and gradient norms of terms that use it, and their shares, will be "
            "different in the run."
        )
    if plan.matches:
        yield _matches(plan.matches)
    yield _models(plan)
    yield _memory(plan)
    yield Text(
        f"evaluation: batches of {plan.eval_batch_size}, {size(plan.evaluation.bytes)} of outputs at a time "
        f"({plan.evaluation.how})"
    )
    for item in plan.whole_logits:
        yield Text(f"logits of {printable(item.name)}, all at once: {size(item.bytes)} ({item.how})")
    if plan.kept_mass is not None:
        yield Text(f"teacher logits: {plan.kept_mass}")


def _totals(plan: RunPlan) -> Iterator[Text]:
    yield Text(_steps(plan))
    yield Text(_evaluations(plan))
    if plan.shared_cache is not None:
        seeds = (
            f"{len(plan.seeds)} seeds"
            if len(plan.seeds) > 1
            else f"{sum(one.teacher is None for one in plan.stages)} stages"
        )
        yield Text(f"teacher cache, shared by {seeds}: {size(plan.shared_cache)} on disk (measured for one batch)")
    yield from _additions(plan)


def _additions(plan: RunPlan) -> Iterator[Text]:
    """Return a line for each of the student's transforms, the evaluators, and the hooks that may change the run."""
    from kdplug.host.spec import parse_spec
    from kdplug.report.table import component_text

    for label, found in (("student transforms", plan.transforms), ("evaluators", plan.evaluators)):
        if found:
            yield Text(f"{label}: {printable(', '.join(component_text(parse_spec(one)) for one in found))}")
    if plan.acting:
        yield Text(f"hooks that may change the run: {printable(', '.join(plan.acting))}")


def _teacher(plan: RunPlan) -> str | None:
    """Describe a teacher that is not the task's, or that changes."""
    described = {
        "task": "the task's",
        "none": "none: no term reads one",
        "self": "the student with its adapters off",
        "copy": "a copy of the untrained student",
    }
    update = plan.config.teacher_update
    if plan.teacher == "task" and update is None:
        return None
    found = f"teacher: {described.get(plan.teacher, plan.teacher)}"
    if update is None:
        return found
    settings = ", ".join(f"{key}={value}" for key, value in update.settings.items())
    return f"{found}, changed after each optimizer step by {update.name}{f' ({settings})' if settings else ''}"


def size(count: int) -> str:
    """Format a byte count with three significant digits, or four from 1,000 to 1,023: ``12.3 MiB``, ``1,020 KiB``."""
    number, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    if units[0] == "bytes":
        return f"{count} bytes"
    return f"{number:.3g} {units[0]}" if number < 999.5 else f"{number:,.0f} {units[0]}"


def _terms(plan: RunPlan) -> Table:
    rows = [
        [
            term.name,
            *(_weight(weight, term.share) for weight in term.weights),
            "" if term.value is None else f"{term.value:.4g}",
            "" if term.gradient_norm is None else f"{term.gradient_norm:.3g}",
        ]
        for term in plan.terms
    ]
    norm = "gradient norm, weighted" if plan.balancer is None else "gradient norm, unweighted"
    headings = ("first batch", "weight at start", "at half", "at end", "unweighted", norm)
    return _table(headings, rows, right=5)


def _weight(weight: float, share: float | None) -> str:
    if share is None:
        return f"{weight:.3g}"
    return f"share {share:g}" if weight == 1 else f"share {share:g}, times {weight:.3g}"


def _balancer(found: PlannedBalancer) -> str:
    steps = "step" if found.calibrate_steps == 1 else "steps"
    how = f"computes the weights from the first {found.calibrate_steps} {steps}, before training"
    if not found.calibrate_steps:
        how = "multiplies each weight by a factor that changes after each step"
        how += ", from the gradient of each term" if found.gradients_in_steps else ", from the terms' values"
    return f"{found.name} {how}: costs about {found.cost:,.3g} optimizer steps more (counted: two forward passes a backward pass)"


def _matches(matches: Iterable[PlannedMatch]) -> Table:
    rows = []
    for match in matches:
        pairs = zip_longest(_layers(match.student), _layers(match.teacher), fillvalue="")
        for place, (student, teacher) in enumerate(pairs):
            head = [match.term, _projection(match)] if place == 0 else ["", ""]
            rows.append([head[0], student, teacher, head[1]])
    return _table(("match", "student", "teacher", "projection"), rows)


def _layers(found: Iterable[tuple[str, list[int]]]) -> list[str]:
    return [f"{layer} {shape}" for layer, shape in found]


def _projection(match: PlannedMatch) -> str:
    found = match.projection
    return "" if found is None else f"{found.name} {found.in_dim} → {found.out_dim}, {found.parameters:,} parameters"


def _models(plan: RunPlan) -> Table:
    rows = [[name, f"{count:,}"] for name, count in plan.parameters.items()]
    return _table(("model", "parameters"), rows, right=1)


def _memory(plan: RunPlan) -> Table:
    rows = [[item.name, size(item.bytes), item.how] for item in plan.memory]
    rows.append(["total", size(sum(item.bytes for item in plan.memory)), ""])
    return _table(("distillation memory", "", "source"), rows)


def _steps(plan: RunPlan) -> str:
    steps = [f"{_STAGES[name]} {count}" for name, count in plan.steps.items() if count]
    seeds = f"; {plan.total_steps} in all, with {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
    return f"optimizer steps: {', '.join(steps)}{seeds}"


def _evaluations(plan: RunPlan) -> str:
    found = plan.evaluations
    if not found.count:
        return "evaluations: none; each student ends with the weights of its last step"
    total = found.count * found.examples
    return (
        f"evaluations: {found.count} of each student on {found.examples:,} validation examples, {total:,} in all against "
        f"{found.trained:,} that it trains on: about {found.share:.0%} of the time of a student without a teacher (estimated: "
        "training on an example takes as long as evaluating three)"
    )


def _warnings(plan: RunPlan) -> Iterator[Text]:
    for warning in plan.warnings:
        where = f"{warning.field}: " if warning.field else ""
        yield Text.assemble(("warning: ", "yellow"), f"{where}{warning.message} [{warning.check}]")
    count = len(plan.warnings)
    yield Text(f"{count} warning{'s' * (count != 1)}" if count else "no warnings")


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]], *, right: int = 0) -> Table:
    """Return a table whose last ``right`` columns are right-aligned."""
    table, columns = Table(header_style="bold"), list(headings)
    for place, heading in enumerate(columns):
        table.add_column(heading, justify="right" if place >= len(columns) - right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


EXIT_CODE = 1


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (.yaml, .yml or .json).")],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one value, such as training.num_epochs=3. May be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Preview a run's terms, matches, memory and warnings without training. Exits with status 1 on an error."""
    with report_errors(debug=debug, exit_code=EXIT_CODE):
        from kdplug.cli.terminal import console
        from kdplug.engine.observe.activity import busy

        with chosen_recipe(recipe, changes) as chosen:
            typer.echo("Reading the data, building both models, and running their first batches …", err=True)
            # keep the output of tasks and models out of the plan
            with redirect_stdout(sys.stderr), busy("Planning", shown=True):
                from kdplug.recipes.preview.plan import plan_recipe

                found = plan_recipe(chosen)
        if as_json:
            typer.echo(printable(json.dumps(found.to_data(), indent=2, ensure_ascii=False, allow_nan=False)))
            return
        out = console()
        for line in plan_lines(found):
            out.print(line, soft_wrap=not hasattr(line, "columns"), highlight=False)
