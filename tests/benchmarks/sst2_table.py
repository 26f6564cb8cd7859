"""The tables of ``sst2.py``, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, median, stdev
from typing import Any

Cells = Mapping[str, Mapping[str, Any]]
Key = tuple[int, str, str]
"""Layers, loss, library."""

ORDER = ("undistilled", "kd", "kd+matches")


def print_tables(cells: Cells, parts: tuple[str, ...]) -> None:
    """What the students are worth and what they cost, over the seeds that are there."""
    for line in (*teacher_lines(cells, parts), "", *student_lines(cells, parts)):
        print(line)


def teacher_lines(cells: Cells, parts: tuple[str, ...]) -> Iterator[str]:
    """The teachers' accuracy."""
    found = {name.split("/")[0]: cell["accuracy"] for name, cell in cells.items() if name.endswith("/teacher")}
    shown = ", ".join(f"{part} {spread([100 * accuracy[part] for accuracy in found.values()])}" for part in parts)
    yield f"teacher, seeds {', '.join(sorted(found))}: {shown}"


def student_lines(cells: Cells, parts: tuple[str, ...]) -> Iterator[str]:
    """A row for each kind of student."""
    kinds = by_kind(cells)
    heads = ["layers", "student", "seeds", *parts, *(f"lead, {part}" for part in parts)]
    heads += ["examples/s", "peak MiB", "CPU s", "kdplug/textbrewer", "same weights"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for (layers, loss, library), runs in kinds.items():
        plain = kinds.get((layers, "undistilled", "kdplug"), {})
        row = [str(layers), loss if loss == "undistilled" else f"{loss}, {library}", str(len(runs))]
        row += [spread([100 * run["accuracy"][part] for run in runs.values()]) for part in parts]
        row += ["" if loss == "undistilled" else lead(runs, plain, part) for part in parts]
        other = kinds.get((layers, loss, "textbrewer"), {}) if library == "kdplug" else {}
        row += [
            f"{median(run['examples'] / run['cpu_seconds'] for run in runs.values()):.0f}",
            f"{median(run['peak_mib'] for run in runs.values()):,.0f}",
            f"{median(run['cpu_seconds'] for run in runs.values()):.0f}",
            ratio(runs, other),
            same(runs, other),
        ]
        yield f"| {' | '.join(row)} |"


def by_kind(cells: Cells) -> dict[Key, dict[str, Mapping[str, Any]]]:
    """The runs of each kind of student, by seed."""
    kinds: dict[Key, dict[str, Mapping[str, Any]]] = {}
    for name, cell in cells.items():
        if not name.endswith("/teacher"):
            seed, layers, loss, library = name.split("/")
            kinds.setdefault((int(layers), loss, library), {})[seed] = cell
    return dict(sorted(kinds.items(), key=lambda item: (-item[0][0], ORDER.index(item[0][1]), item[0][2])))


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{mean(values):.2f}"


def lead(runs: Mapping[str, Any], plain: Mapping[str, Any], part: str) -> str:
    """By how many points a student beats the undistilled one of its seed."""
    both = [100 * (runs[seed]["accuracy"][part] - plain[seed]["accuracy"][part]) for seed in runs if seed in plain]
    return f"{mean(both):+.2f} ± {stdev(both):.2f}" if len(both) > 1 else ""


def ratio(runs: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The CPU time of whole runs against the other library's of the same seed: the median, and the range."""
    both = sorted(runs[seed]["cpu_seconds"] / others[seed]["cpu_seconds"] for seed in runs if seed in others)
    return f"{median(both):.3f} ({both[0]:.3f} to {both[-1]:.3f})" if both else ""


def same(runs: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """For how many seeds both libraries ended in the same weights, to the last digit of their sum."""
    both = [runs[seed]["weights"] == others[seed]["weights"] for seed in runs if seed in others]
    return f"{sum(both)} of {len(both)}" if both else ""


def time_lines(times: Mapping[tuple[int, str], Mapping[str, list[tuple[float, float]]]]) -> Iterator[str]:
    """The seconds of a step in either library, medians, the median of their ratio, and in how many rounds weights agree."""
    yield "| layers | loss | kdplug | textbrewer | kdplug/textbrewer | same weights |"
    yield "|---|---|---|---|---|---|"
    for (layers, loss), found in times.items():
        (ours, own), (theirs, others) = (zip(*found[library], strict=True) for library in ("kdplug", "textbrewer"))
        ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
        shown = f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        agree = f"{sum(map(float.__eq__, own, others))} of {len(own)}"
        yield f"| {layers} | {loss} | {1e3 * median(ours):.0f} ms | {1e3 * median(theirs):.0f} ms | {shown} | {agree} |"
