"""Counts attacks and prints the table: which attack, how often tried, how often held.

A test here carries ``@pytest.mark.attack("what is tried")`` and counts as one attempt, held if it passes. A test that tries
many things takes the fixture ``attempts`` and records each. ``pytest -m "slow or not slow" tests/adversary`` runs them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

COUNTS = pytest.StashKey["Attempts"]()


@dataclass
class Attempts:
    """How often an attack was tried and how often it was held."""

    tried: int = 0
    held: int = 0

    def record(self, held: bool) -> None:
        """Count one attempt."""
        self.tried += 1
        self.held += held


@pytest.fixture
def attempts(request: pytest.FixtureRequest) -> Attempts:
    """Counts for a test that tries many things; without it a test counts as one attempt."""
    return request.node.stash.setdefault(COUNTS, Attempts())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test of this folder that does not say which attack it is."""
    for item in items:
        if "adversary" in item.path.parts and item.get_closest_marker("attack") is None:
            raise pytest.UsageError(f"{item.nodeid} has no @pytest.mark.attack")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the counts to the report, which also reaches the table from a worker process."""
    report = yield
    mark = item.get_closest_marker("attack")
    if mark is not None and call.when == "call":
        counts = item.stash.get(COUNTS, Attempts(1, int(report.passed)))
        report.user_properties.append(("attack", [mark.args[0], counts.tried, counts.held]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    table: dict[str, Attempts] = {}
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "attack":
                row = table.setdefault(value[0], Attempts())
                row.tried, row.held = row.tried + value[1], row.held + value[2]
    if table:
        terminalreporter.section("attacks")
        width = max(map(len, table))
        terminalreporter.write_line(f"{'attack':{width}}  tried   held")
        for attack, row in sorted(table.items()):
            terminalreporter.write_line(f"{attack:{width}}  {row.tried:5}  {row.held:5}", red=row.held < row.tried)
