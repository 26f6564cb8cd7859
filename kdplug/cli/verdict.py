"""``kdplug verdict``: compare two methods by their predictions."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kdplug.cli.terminal import report_errors
from kdplug.contracts.task import Aggregate
from kdplug.errors import ConfigError
from kdplug.host.name import printable

_AggregateName = Enum("_AggregateName", {name: name for name in get_args(Aggregate)})  # type: ignore[misc]

PREDICTIONS = "predictions.jsonl"
METRICS = "metrics.json"
RECORD = "kdplug-run.json"
RESULT = "result.json"


def verdict(
    a: Annotated[Path, typer.Argument(help="File predictions.jsonl of the first method, or the folder of a run.")],
    b: Annotated[
        Path | None,
        typer.Argument(
            help="File predictions.jsonl of the second method, or the folder of a run. If omitted, the models distilled and "
            "no_teacher of A are compared."
        ),
    ] = None,
    *,
    arm_a: Annotated[
        str | None,
        typer.Option(
            "--arm-a",
            metavar="ARM",
            help="Model of A to compare, such as distilled or no_teacher, if A contains more than one.",
        ),
    ] = None,
    arm_b: Annotated[
        str | None,
        typer.Option(
            "--arm-b",
            metavar="ARM",
            help="Model of B to compare, such as distilled or no_teacher, if B contains more than one.",
        ),
    ] = None,
    is_lower_better: Annotated[
        bool,
        typer.Option(
            "--lower-is-better",
            help="Treat lower values of the metric as better. Not needed for the folder of a run, where this is recorded.",
        ),
    ] = False,
    aggregate: Annotated[
        _AggregateName | None,
        typer.Option(
            "--aggregate",
            help="How to compute the metric from the scores of the examples. The default is that of the run, or mean for "
            "other files.",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            metavar="M",
            help="Smallest difference that matters. The output then states how many seeds are needed to detect it.",
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="C", help="Confidence level of the intervals.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare two methods by their predictions for the same test examples and seeds, and print BEATS, LOSES or CANNOT TELL.

    Each line of a file is a JSON object with the id of a test example, the seed of the run and the score of the example.
    """
    with report_errors(debug=debug):
        from kdplug.evidence.rows import read_rows
        from kdplug.evidence.verdict import verdict as compare

        if b is None:
            b, arm_a, arm_b = a, arm_a or "distilled", arm_b or "no_teacher"
        files, arms = [_file(a), _file(b)], [arm_a, arm_b]
        sides = [read_rows(file, arm) for file, arm in zip(files, arms, strict=True)]
        folders = [_run_folder(file) for file in files]
        of_run = _settings(files, folders)
        _check_test_data(folders)
        found = compare(
            sides[0],
            sides[1],
            is_lower_better=is_lower_better or of_run.get("is_lower_better", False),
            aggregate=aggregate.value if aggregate is not None else of_run.get("aggregate", "mean"),
            margin=margin,
            confidence=confidence,
            metric=of_run.get("metric", "score"),
        )
        if as_json:
            typer.echo(printable(json.dumps(found.to_data(), indent=2, ensure_ascii=False, allow_nan=False)))
            return
        for line in found.lines(*_names(files, [rows[0].get("arm") for rows in sides])):
            typer.echo(printable(line))


def _file(path: Path) -> Path:
    return path / PREDICTIONS if path.is_dir() else path


def _run_folder(file: Path) -> Path:
    """Return the folder of the run that the predictions belong to, which may be those of one arm and seed."""
    return file.parents[2] if (file.parent / RESULT).is_file() and len(file.parents) > 2 else file.parent


def _settings(files: list[Path], folders: list[Path]) -> dict[str, Any]:
    """Return metric, aggregate and direction of the runs that the files belong to, from their ``metrics.json``.

    Raises: ``ConfigError`` if the two runs differ in them, or if the predictions of one have no scores for its metric.
    """
    known = [
        (file, found)
        for file, folder in zip(files, folders, strict=True)
        if (found := _settings_of(folder / METRICS)) is not None
    ]
    for file, found in known[1:]:
        for key, value in found.items():
            if value != known[0][1][key]:
                raise ConfigError(
                    f"{known[0][0]} has {known[0][1][key]!r} and {file} has {value!r}. Compare runs with the same metric",
                    field=key,
                )
    return known[0][1] if known else {}


def _settings_of(path: Path) -> dict[str, Any] | None:
    found = _read(path)
    if "arms" in found and found.get("aggregate") is None:
        raise ConfigError(
            f"the predictions of {path.parent} have no scores for the run's metric {found.get('metric')!r}. Run the recipe with "
            "the task's main metric, or compare files with scores for that metric",
            field="metric",
        )
    if found.get("aggregate") not in get_args(Aggregate):
        return None
    metric, is_lower_better = found.get("metric"), found.get("is_lower_better")
    if not isinstance(metric, str) or not isinstance(is_lower_better, bool):
        return None
    return {"metric": metric, "aggregate": found["aggregate"], "is_lower_better": is_lower_better}


def _check_test_data(folders: list[Path]) -> None:
    """Raise ``ConfigError`` if the records of both runs exist and name different test data."""
    parts = [_test_part(_read(folder / RECORD)) for folder in folders]
    if None not in parts and parts[0] != parts[1]:
        raise ConfigError(
            f"{folders[0]} and {folders[1]} were evaluated on different test data. Compare runs on the same test data",
            field="test",
        )


def _test_part(record: dict[str, Any]) -> Any:
    """Return the fingerprint of the test part without file names and, if its columns are known, preprocessing."""
    data = record.get("data")
    part = data.get("test") if isinstance(data, dict) else None
    inner = part.get("fingerprint") if isinstance(part, dict) else None
    if not isinstance(inner, dict):
        return part
    names = ("rows", "columns") if "columns" in inner else tuple(name for name in inner if name != "shown_as")
    return {name: inner.get(name) for name in names}


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is no such file.

    Raises: ``ConfigError`` if it cannot be read.
    """
    from kdplug.host.bounded_json import read_json

    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot be read: {problem}. To compare the predictions without it, move them to another folder",
            field=str(path),
        ) from error
    return found if isinstance(found, dict) else {}


def _names(files: list[Path], arms: list[str | None]) -> list[str]:
    if arms[0] != arms[1]:
        return [arm or str(file) for arm, file in zip(arms, files, strict=True)]
    return [str(file) for file in files]
