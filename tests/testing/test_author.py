"""What the author of a plugin sees: the kit in a test file of another project, run by pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdplug.testing import plugin_site

PLUGIN = '''
    from kdplug import LossSum, ShapeError


    def squared(student_features, teacher_features, mask) -> LossSum:
        """Squared error of each counted token."""
        if student_features.shape != teacher_features.shape or mask is not None and mask.shape != student_features.shape[:-1]:
            raise ShapeError("shapes differ")
        error = (student_features.double() - teacher_features.detach().double()).square().mean(-1)
        if mask is None:
            return LossSum(error.sum(), error.numel())
        return LossSum((error * mask).sum(), mask.sum())
    '''
TESTS = """
    from kdplug.testing import LossLaws


    class TestSquared(LossLaws):
        entry = "squared"
        non_negative = zero_at_equality = True
    """


@pytest.fixture(scope="module")
def report() -> str:
    """What pytest prints for a plugin whose mask is multiplied."""
    points = {"kdplug.losses": {"squared": "kdplug_squared:squared"}}
    files = {"kdplug_squared.py": PLUGIN, "test_squared.py": TESTS, "pytest.ini": "[pytest]\n"}
    with plugin_site("kdplug-squared", "0.1.0", points, files) as site:
        command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "-v", str(site.path)]
        done = subprocess.run(
            command, env=site.environment, cwd=site.path, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.stderr == ""
    return done.stdout


def test_the_broken_laws_fail_and_the_others_pass(report: str) -> None:
    failed = {
        line.split("::")[-1].split()[0]
        for line in report.splitlines()
        if line.startswith("test_squared.py") and "FAILED" in line
    }
    assert failed == {
        "test_padding_that_is_not_finite_does_not_spread",
        "test_padding_changes_nothing",
        "test_an_empty_mask_gives_zero",
    }


def test_a_failure_is_one_sentence_without_a_traceback_through_the_kit(report: str) -> None:
    assert "\npadding of nan gives the value nan: select with where instead of multiplying\n" in report
    assert str(Path("kdplug") / "testing") not in report


def test_laws_that_do_not_apply_are_neither_run_nor_skipped(report: str) -> None:
    assert "SKIPPED" not in report
    assert "temperature" not in report
