"""Report section: the resolved recipe, versions, plugins and data of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdplug.config.text import write_yaml
from kdplug.report.page.results import TEACHER, Record, Results
from kdplug.report.table import duration

_LONGEST = 300
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Provenance:
    """Versions, plugins, data, cost and recipe of a run."""

    versions: list[tuple[str, str]]
    plugins: list[tuple[str, str, str]]
    data: list[tuple[str, str, str]]
    cost: str
    recipe: str


def provenance(results: Results, record: Record, recipe: Mapping[str, Any]) -> Provenance:
    """Return the content of ``kdplug-run.json``, shortened for display."""
    versions = {
        "kdplug": record.kdplug,
        "python": record.python,
        "torch": record.torch,
        "recipe, SHA-256": record.config_sha256,
    }
    plugins = [
        (
            one.dist,
            f"{one.version or ''}{' (editable)' if one.editable else ''}",
            (one.commit or one.sha256 or "")[:_SHORT],
        )
        for one in record.plugins
    ]
    return Provenance(
        [(name, value) for name, value in versions.items() if value],
        plugins,
        [_part(name, one) for name, one in record.data.items()],
        _cost(results),
        write_yaml(recipe),
    )


def _part(name: str, one: Any) -> tuple[str, str, str]:
    if not isinstance(one, dict):
        return name, "", _short(one)
    rest = {key: value for key, value in one.items() if key not in ("kind", "examples")}
    count = one.get("examples")
    return name, f"{count:,}" if isinstance(count, int) else "", _short(rest.get("fingerprint", rest))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _cost(results: Results) -> str:
    known = [(name, run.seconds) for name, arm in results.arms.items() for run in arm.runs if run.seconds is not None]
    runs = sum(name != TEACHER for name, _ in known)
    if not runs:
        return ""
    text = f"{duration(sum(seconds for _, seconds in known))} of training in all: {runs} student{'s' * (runs != 1)}"
    return f"{text} and the teacher." if any(name == TEACHER for name, _ in known) else f"{text}."
