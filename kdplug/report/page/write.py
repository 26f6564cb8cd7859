"""Write ``report.html``, and the page that compares several runs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdplug.report.file import replacing
from kdplug.report.page.chart import Chart
from kdplug.report.page.results import CONTROL, DISTILLED, NAMES, TEACHER, Record
from kdplug.report.page.run import RunFiles, read_run
from kdplug.report.page.section.arms import Row, arm_table, figure, seed_chart
from kdplug.report.page.section.curves import term_charts, validation_chart
from kdplug.report.page.section.provenance import provenance
from kdplug.report.page.section.quality import agreement, class_table, matrices, reliability_diagrams
from kdplug.report.page.section.verdict import VerdictView, example_level, main_verdict
from kdplug.report.table import duration, file_size

REPORT = "report.html"
"""Name of the page in a run's folder."""

_TEMPLATES = "templates"


def write_report(output_dir: Path, file: Path | None = None) -> Path:
    """Write the page of the completed run in ``output_dir``, by default as ``report.html`` there, and return its path.

    The page is a single file without scripts, image files or fonts, and makes no network request.

    Raises: ``RunError`` if a file of the run is missing or damaged.
    """
    run = read_run(output_dir)
    found = output_dir / REPORT if file is None else file
    _write(found, "report.html", _page(run))
    return found


def write_comparison(output_dirs: Sequence[Path], file: Path) -> Path:
    """Write one page that compares several completed runs, and return its path.

    Raises: ``RunError`` if a file of a run is missing or damaged.
    """
    names = [folder.resolve().name for folder in output_dirs]
    labels = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, output_dirs, strict=True)]
    runs = [read_run(folder, label) for folder, label in zip(output_dirs, labels, strict=True)]
    views = [_compared(run, place) for place, run in enumerate(runs)]
    _write(file, "comparison.html", {"runs": views, "table": _table(runs), "warnings": _warnings(runs)})
    return file


def _page(run: RunFiles) -> dict[str, Any]:
    results, differences = run.results, run.differences
    rows = differences.rows if differences else []
    validation = validation_chart(results, run.histories)
    return {
        "run": run,
        "results": results,
        "verdict": main_verdict(results),
        "example_level": example_level(results),
        "arms": arm_table(results),
        "seeds": seed_chart(results),
        "curves": [*([validation] if validation else []), *term_charts(run.histories, results.saved)],
        "agreement": agreement(results),
        "matrices": matrices(results),
        "reliability": reliability_diagrams(results),
        "classes": class_table(results),
        "differences": differences,
        "has": {
            "input": any(row.input for row in rows),
            "label": any(row.label for row in rows),
            "probability": any(row.probability is not None for row in rows),
            "right": any(row.right for row in rows),
        },
        "provenance": provenance(results, run.record, run.recipe),
    }


@dataclass(frozen=True, slots=True)
class _Compared:
    label: str
    task: str
    verdict: VerdictView
    curves: list[Chart]


def _compared(run: RunFiles, place: int) -> _Compared:
    chart = validation_chart(run.results, run.histories, f"validation-{place}")
    return _Compared(run.label, run.task, main_verdict(run.results, f"verdict-{place}"), [chart] if chart else [])


def _table(runs: Sequence[RunFiles]) -> list[Row]:
    """Return rows with a value for each run; rows without any value are omitted."""

    def metric(arm: str) -> list[tuple[str, str]]:
        found = [(run.results, run.results.ordered.get(arm)) for run in runs]
        return [
            ("", "") if one is None else figure(one.metrics[of.metric], (one.sd or {}).get(of.metric))
            for of, one in found
        ]

    def text(values: Sequence[str]) -> list[tuple[str, str]]:
        return [(value, "") for value in values]

    students = [run.results.ordered[DISTILLED] for run in runs]
    gaps = [run.results.gap_closed for run in runs]
    rows = [
        Row("task", text([run.task for run in runs])),
        Row("verdict", text([main_verdict(run.results).outcome for run in runs]), is_main=True),
        Row("metric", text([run.results.metric for run in runs])),
        Row(NAMES[DISTILLED], metric(DISTILLED), is_main=True),
        Row(NAMES[CONTROL], metric(CONTROL)),
        Row(NAMES[TEACHER], metric(TEACHER)),
        Row("gap to the teacher closed", text(["" if gap is None else f"{100 * gap:.0f} %" for gap in gaps])),
        Row("seeds", text([str(len(run.results.seeds)) for run in runs])),
        Row("student parameters", text(["" if one.parameters is None else f"{one.parameters:,}" for one in students])),
        Row("student size", text(["" if one.bytes is None else file_size(one.bytes) for one in students])),
        Row(
            "time per example",
            text(["" if one.seconds_per_example is None else duration(one.seconds_per_example) for one in students]),
        ),
        Row("training time of a student", text([_seconds([run.seconds for run in one.runs]) for one in students])),
    ]
    return [row for row in rows if any(value for value, _ in row.cells)]


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return duration(sum(known) / len(known)) if known else ""


def _warnings(runs: Sequence[RunFiles]) -> list[str]:
    """Return the reasons why the results of the runs cannot be compared."""
    found = []
    if len({(run.results.metric, run.results.is_lower_better) for run in runs}) > 1:
        found.append("The runs have different metrics, which cannot be compared.")
    if len({json.dumps(_test_part(run.record), sort_keys=True) for run in runs}) > 1:
        found.append("The runs have different test parts, so their results cannot be compared.")
    return found


def _test_part(record: Record) -> Any:
    part = record.data.get("test")
    inner = part.get("fingerprint") if isinstance(part, dict) else None
    return {key: value for key, value in inner.items() if key != "shown_as"} if isinstance(inner, dict) else part


def _write(file: Path, template: str, context: Mapping[str, Any]) -> None:
    text = _environment().get_template(template).render(**context)
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__package__, _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files(__package__).joinpath(_TEMPLATES, "style.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    made.globals.update(style=style, style_hash=f"sha256-{digest}")
    return made


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, marks that reorder text, and characters that UTF-8 cannot encode."""


def _cleaned(value: Any) -> Any:
    """Make hidden characters of a string visible. Jinja escapes the result afterwards."""
    if type(value) is str:  # neither a number nor finished HTML
        return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", value)
    return value
