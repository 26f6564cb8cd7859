"""The laws of a project of one loss take a bounded time and memory, with the import of torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.law_suites import EXAMPLE, cost_of, projects

from kdplug.cli.scaffold import FORMS


def test_the_own_tests_of_the_example_pass_within_20_seconds_of_a_core_and_1_gib(tmp_path: Path) -> None:
    (place,) = [place for place in projects(tmp_path) if place.name == EXAMPLE.name]
    cost = cost_of(place)
    assert cost.is_within_bounds, f"{cost.seconds:.1f} s, {cost.mib:.0f} MiB\n{cost.output}"


@pytest.mark.slow
def test_those_of_every_form_of_project_do_too(tmp_path: Path) -> None:
    costs = {place.name: cost_of(place) for place in projects(tmp_path)}
    assert len(costs) == 1 + sum(map(len, FORMS.values()))
    assert {name: cost for name, cost in costs.items() if not cost.is_within_bounds} == {}
