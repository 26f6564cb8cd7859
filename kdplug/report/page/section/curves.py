"""Report section: curves of the validation metric, the loss terms, and the share of each term in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdplug.report.page.chart import Chart, Curve, line_chart, share_chart
from kdplug.report.page.history import History, Series
from kdplug.report.page.results import DISTILLED, NAMES, TEACHER, Results

_COLOURS = 8
_LOG_RATIO = 20

Histories = Mapping[tuple[str, int], History]


def validation_chart(results: Results, histories: Histories, key: str = "validation") -> Chart | None:
    """Draw the validation metric of each student: a thin line for each seed, and a thick line for their mean."""
    curves, legend, last = [], [], []
    for arm in results.ordered:
        seeds = {seed: one.validation for (name, seed), one in histories.items() if name == arm and one.validation}
        if not seeds:
            continue
        curves += seed_curves(f"arm-{arm}", list(seeds.values()))
        legend.append((f"arm-{arm}", NAMES[arm]))
        last.append(f"{NAMES[arm]} ends at {_mean([series[-1][1] for series in seeds.values()]):.4g}")
    if not curves:
        return None
    level = (results.arms["teacher"].runs[0].validation or {}).get(results.metric) if TEACHER in results.arms else None
    levels = [] if level is None else [("arm-teacher", level)]
    if levels:
        legend.insert(0, ("arm-teacher", NAMES[TEACHER]))
        last.insert(0, f"teacher {level:.4g}")
    chart = line_chart(
        key,
        f"{results.metric} on validation",
        f"{'; '.join(last)}.",
        ("optimizer step", results.metric),
        curves=curves,
        levels=levels,
    )
    chart.legend = legend
    return chart


def seed_curves(style: str, seeds: Sequence[Series]) -> list[Curve]:
    """Return a thin curve for each seed and a thick one for their mean; a single seed has only the thick one."""
    if len(seeds) == 1:
        return [Curve(f"{style} thick", seeds[0])]
    return [*(Curve(f"{style} thin", series) for series in seeds), Curve(f"{style} thick", mean_curve(seeds))]


def mean_curve(seeds: Sequence[Series]) -> Series:
    """Return the mean over the seeds at each step that all of them have."""
    values = [dict(series) for series in seeds]
    shared = [step for step, _ in seeds[0] if all(step in one for one in values)]
    return [(step, _mean([one[step] for one in values])) for step in shared]


def term_charts(histories: Histories, saved: int, key: str = "terms") -> list[Chart]:
    """Draw the weighted terms of the distillation, and their share for the saved seed."""
    found = {seed: one for (arm, seed), one in histories.items() if arm == DISTILLED and one.terms}
    if not found:
        return []
    names = list(dict.fromkeys(name for one in found.values() for name in one.terms))
    styles = {name: f"c{place % _COLOURS} d{place // _COLOURS % 3}" for place, name in enumerate(names)}
    curves = [
        curve
        for name in names
        for curve in seed_curves(styles[name], [one.terms[name] for one in found.values() if name in one.terms])
    ]
    is_weighted = all(one.is_weighted for one in found.values())
    title = f"{'Weighted' if is_weighted else 'Unweighted'} loss terms of the distillation"
    values = [value for curve in curves for _, value in curve.points]
    is_log = min(values) > 0 and max(values) > _LOG_RATIO * min(values)
    text = "; ".join(
        f"{name} begins at {series[0][1]:.3g} and ends at {series[-1][1]:.3g}"
        for name, series in next(iter(found.values())).terms.items()
    )
    label = "weighted value" if is_weighted else "unweighted value"
    terms = line_chart(
        key, title, f"{text}.", ("optimizer step", f"{label}{', logarithmic' * is_log}"), curves=curves, is_log=is_log
    )
    terms.legend = [(styles[name], name) for name in names]
    terms.notes = _notes(list(found.values()))
    shown = found.get(saved, next(iter(found.values())))
    if not is_weighted or len(shown.terms) < 2 or not any(value for one in shown.terms.values() for _, value in one):
        return [terms]
    seed = next(seed for seed, one in found.items() if one is shown)
    shares = share_chart(
        f"{key}-share",
        f"Share of each term in the loss, seed {seed}",
        "Stacked shares of the absolute weighted terms.",
        {styles[name]: series for name, series in shown.terms.items()},
    )
    shares.legend = [(styles[name], name) for name in shown.terms]
    shares.notes = ["A share of the loss is not a share of the gradient: a large term can have a small gradient."]
    return [terms, shares]


def _notes(histories: Sequence[History]) -> list[str]:
    group = max(one.group for one in histories)
    left_out = sum(one.left_out for one in histories)
    notes = [f"Each point is the mean over {group} steps."] if group > 1 else []
    return notes + ([f"{left_out:,} values that are not finite are omitted."] if left_out else [])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
