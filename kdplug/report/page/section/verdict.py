"""Report section: the verdict on the distilled student, with its reason and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kdplug.report.page.chart import Strips, Values, strip_chart
from kdplug.report.page.results import CONTROL, DISTILLED, NAMES, SHUFFLED, TEACHER, Results, Run, Verdict

NONE = "NO VERDICT"
SENTENCES = {
    "BEATS": "Distillation helped: the distilled student is better than the same student trained without the teacher.",
    "LOSES": "Distillation hurt: the distilled student is worse than the same student trained without the teacher.",
    "CANNOT TELL": "This run does not show whether distillation helped.",
    NONE: "Nothing was compared.",
}
EXAMPLE_LEVEL = {
    "BEATS": "The student learns from the teacher's output for each example, not only from its output for a class.",
    "LOSES": "The student is worse with the teacher's output for each example than with that of similar examples.",
    "CANNOT TELL": "This run does not show whether the teacher's output for each example matters.",
}
_LARGEST_LOG = 100
_CURES = {"seeds": "more seeds", "test size": "a larger test set"}

WORSE_TEACHER = (
    "On the {part} part the teacher is worse than the student trained without it, so distillation is unlikely to help. "
    "Before changing losses, train the teacher for longer or choose a better one."
)
ADDED_SEEDS = "Seeds were added after results of this run were known, so a false verdict is more likely than the intervals indicate."


@dataclass(frozen=True, slots=True)
class VerdictView:
    """One comparison of two arms."""

    outcome: str
    style: str
    sentence: str
    reason: str
    facts: list[tuple[str, str]]
    chart: Strips | None
    warnings: tuple[str, ...] = ()


def main_verdict(results: Results, key: str = "verdict") -> VerdictView:
    """Return the verdict on distillation, or the reason why there is none. ``key`` is unique on the page."""
    warnings = tuple(_warnings(results))
    if results.verdict is None:
        reason = _missing(results)
        return VerdictView(NONE, "open", SENTENCES[NONE], reason, [], None, warnings)
    return replace(_view(results, results.verdict, CONTROL, SENTENCES, key), warnings=warnings)


def _missing(results: Results) -> str:
    """Return the reason why a run has no verdict."""
    if CONTROL in results.arms:
        return "There is no verdict, because distilled student and control have no seed in common."
    if CONTROL in results.controls:
        return "The control did not complete. Run the recipe again with --resume, which runs only what is missing."
    return (
        "The run trained no control. To compare with a student trained without distillation, set "
        "controls: [no_teacher] in the recipe."
    )


def _warnings(results: Results) -> Iterator[str]:
    if results.teacher_worse:
        teacher = results.arms.get(TEACHER)
        is_tested = teacher is not None and not any(run.validation for run in teacher.runs)
        yield WORSE_TEACHER.format(part="test" if is_tested else "validation")
    if results.seeds_added:
        yield ADDED_SEEDS
    for run, error in results.failed.items():
        yield f"{run} failed: {error}"


def example_level(results: Results, key: str = "example-level") -> VerdictView | None:
    """Return the comparison with the shuffled teacher, if the run has one."""
    if results.example_level is None:
        return None
    return _view(results, results.example_level, SHUFFLED, EXAMPLE_LEVEL, key)


def _view(results: Results, verdict: Verdict, other: str, sentences: dict[str, str], key: str) -> VerdictView:
    facts = list(_facts(results, verdict, with_gap=other == CONTROL))
    chart = _chart(verdict, seed_differences(results, verdict, other), key, other)
    style = verdict.outcome.lower().replace(" ", "-")
    return VerdictView(verdict.outcome, style, sentences[verdict.outcome], _reason(verdict.reason), facts, chart)


def seed_differences(results: Results, verdict: Verdict, other: str) -> dict[int, float]:
    """Return the difference of each seed on the verdict's scale; empty if it cannot be computed from the metrics."""
    first, second = (
        {run.seed: run.metrics.get(results.metric) for run in _runs(results, arm)} for arm in (DISTILLED, other)
    )
    sign = -1 if results.is_lower_better else 1
    found = {}
    for seed, value in first.items():
        pair = [_scaled(one, verdict.scale) for one in (value, second.get(seed))]
        if pair[0] is not None and pair[1] is not None:
            found[seed] = sign * (pair[0] - pair[1])
    if not found or verdict.difference is None:
        return {}
    mean = sum(found.values()) / len(found)
    return found if math.isclose(mean, verdict.difference, rel_tol=0.02, abs_tol=1e-6) else {}


def _reason(reason: str) -> str:
    """Return a reason as a sentence, with a capital letter and a full stop."""
    return f"{reason[:1].upper()}{reason[1:].rstrip('.')}." if reason else ""


def _runs(results: Results, arm: str) -> Sequence[Run]:
    return results.arms[arm].runs if arm in results.arms else ()


def _scaled(value: float | None, scale: str) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    if scale.startswith("log "):
        return math.log(value) if value > 0 else None
    return value**2 if scale.startswith("squared ") else value


def _facts(results: Results, verdict: Verdict, *, with_gap: bool) -> Iterator[tuple[str, str]]:
    scale = verdict.scale or results.metric
    if verdict.difference is not None:
        factor = (
            f", {scale.removeprefix('log ')} × {math.exp(-verdict.difference):.3f}"
            if scale.startswith("log ") and abs(verdict.difference) < _LARGEST_LOG
            else ""
        )
        yield "difference", f"{signed(verdict.difference)} {scale}{factor}"
    yield "seeds", f"{verdict.seeds}"
    if verdict.units:
        yield "independent test units", f"{verdict.units:,}"
    for name, interval in _intervals(verdict):
        yield f"{100 * verdict.confidence:g} % interval {name}", _interval(interval)
    if verdict.half_width is not None:
        yield "half-width of the widest interval", plain(verdict.half_width)
    if verdict.limited_by is not None:
        yield "limited by", f"{verdict.limited_by}: {_CURES.get(verdict.limited_by, 'more data')} would narrow it"
    if verdict.margin is not None:
        yield "margin, the smallest difference that matters", plain(verdict.margin)
    if verdict.seeds_for_margin is not None:
        yield "seeds needed for a verdict at the margin", f"about {verdict.seeds_for_margin}"
    if with_gap and results.gap_closed is not None:
        yield "gap to the teacher closed", f"{100 * results.gap_closed:.0f} %"


def _intervals(verdict: Verdict) -> list[tuple[str, Sequence[float]]]:
    found = {
        "over seeds": verdict.seed_interval,
        "over test units": verdict.unit_interval,
        "over both": verdict.interval,
    }
    return [(name, interval) for name, interval in found.items() if interval is not None]


def _interval(interval: Sequence[float]) -> str:
    return f"{signed(interval[0])} to {signed(interval[1])}"


def signed(value: float) -> str:
    """Format a difference with its sign: ``+0.0123``, ``−0.0123``."""
    return f"{value:+.4f}".replace("-", "−") if abs(value) < 10 else f"{value:+.2f}".replace("-", "−")


def plain(value: float) -> str:
    """Format a positive number of the size of a metric."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if value < 10 else f"{value:.2f}"


def _chart(verdict: Verdict, seeds: dict[int, float], key: str, other: str) -> Strips | None:
    intervals: dict[str, Sequence[float] | None] = {"over seeds": None} if seeds else {}
    intervals |= dict(_intervals(verdict))
    if not intervals:
        return None
    rows = [_row(name, verdict, interval, seeds) for name, interval in intervals.items()]
    text = "; ".join(
        f"{row.name}: {_interval(row.interval) if row.interval else 'no interval'}"
        + (f", seeds {', '.join(map(signed, row.points))}" if row.points else "")
        for row in rows
    )
    return strip_chart(
        key,
        f"Difference with {100 * verdict.confidence:g} % intervals",
        f"{NAMES[DISTILLED]} against {NAMES[other]}, the same student. {text}.",
        f"difference in {verdict.scale or 'the metric'}; right of 0: distilled is better",
        rows,
        zero=True,
        margin=verdict.margin,
    )


def _row(name: str, verdict: Verdict, interval: Sequence[float] | None, seeds: dict[int, float]) -> Values:
    pair = None if interval is None else (interval[0], interval[1])
    points = list(seeds.values()) if name == "over seeds" else ()
    note = "" if pair else f"no interval: {verdict.seeds} seed{'s' * (verdict.seeds != 1)}"
    return Values(name, "difference", verdict.difference if pair or len(seeds) > 1 else None, pair, points, note)
