"""What a teacher cache holds, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdplug.engine.cache_report import CacheReport
from kdplug.engine.cache_summary import size


def cache_lines(report: CacheReport) -> Iterator[RenderableType]:
    """What to print, in order."""
    state = "complete" if report.is_complete else f"not complete: {report.written} of {report.shards} shards"
    yield Text(f"{report.path}: {state}")
    yield _table("kept", _kept(report))
    yield _table("of", {name: _short(value) for name, value in report.fingerprint.items()})


def _kept(report: CacheReport) -> dict[str, str]:
    tally, item = report.tally, report.bytes_per_item
    spec, temperature = report.fingerprint.get("codec"), report.fingerprint.get("temperature")
    at = "" if temperature is None else f" at temperature {temperature:g}"
    rows = {
        "examples": f"{report.examples:,} of {report.count:,}",
        "outputs": ", ".join(sorted(report.layout.names)),
        "bytes": size(report.bytes),
        "codec": "none" if spec is None else _short(spec),
        "classes": ", ".join(f"{count:,}" for count in report.classes),
    }
    if item is not None:
        rows |= {
            "items": f"{tally.items:,} of {tally.positions:,} ({tally.coverage:.1%} covered)",
            "bytes per item": f"{item:,.1f}",
            f"kept mass{at}": f"{tally.kept_mass:.4f} on average, {tally.lowest:.4f} at least",
        }
    return {name: row for name, row in {**rows, "largest error": f"{tally.error:.3g}"}.items() if row}


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, row in rows.items():
        table.add_row(name, row)
    return table


def _short(value: Any) -> str:
    """Plain data in a line; of many digests, how many there are."""
    if isinstance(value, Mapping):
        inner = {key: _short(one) for key, one in value.items()}
        if len(inner) > _SHOWN:
            return f"{len(inner)} digests"
        return ", ".join(f"{key}: {one}" for key, one in inner.items())
    return str(value)


_SHOWN = 6
