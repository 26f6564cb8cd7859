"""The laws of a project of one loss take a bounded time and memory, with the import of torch.

The benchmark measures them from a process without torch: a process starts with the peak memory of the one that starts it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdplug.cli.scaffold import FORMS

BENCHMARK = Path(__file__).parent / "benchmarks" / "law_suites.py"


def measured(*words: str) -> list[str]:
    """Return the benchmark's lines; it fails if a suite fails or exceeds 20 seconds of a core or 1 GiB."""
    done = subprocess.run([sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_own_tests_of_the_example_pass_within_20_seconds_of_a_core_and_1_gib() -> None:
    assert len(measured("--project", "kdplug-myloss")) == 1


@pytest.mark.slow
def test_those_of_every_form_of_project_do_too() -> None:
    assert len(measured()) == 1 + sum(map(len, FORMS.values()))
