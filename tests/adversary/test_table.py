"""The table itself counts what was tried, and a test that fails shows in it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.attack("a test that fails goes into the table as not held")
def test_a_failing_test_shows_as_not_held(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.attack("one")
        def test_one(): pass

        @pytest.mark.attack("one")
        def test_two(): assert False

        @pytest.mark.attack("many")
        def test_many(attempts):
            for held in (True, False, True): attempts.record(held)
        """
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "ignore")
    result.stdout.re_match_lines_random([r"many +3 +2", r"one +2 +1"])
