"""A wrong ``KDPLUG_PLUGINS`` is said as everything else is: in one line, whatever the command."""

from __future__ import annotations

import pytest

TOLD = "KDPLUG_PLUGINS names 'kdplug-mylos', but no such plugin is installed. Did you mean 'kdplug-myloss'?"


def _stderr(fake_site, *words, **environment):
    fake_site.add("kdplug-myloss", losses={"mine": "m:f"})
    code = f"from kdplug.cli.app import app; app({list(words)})"
    return fake_site.python(code, KDPLUG_PLUGINS="-kdplug-mylos", **environment).stderr


@pytest.mark.parametrize("words", [("plugins", "list"), ("schema", "--names"), ("plugins", "show", "ce")])
def test_an_unknown_name_is_one_line(fake_site, words):
    first, *rest = _stderr(fake_site, *words).splitlines()
    assert first == f"warning: {TOLD}"
    assert "KDPLUG_PLUGINS" not in "".join(rest)


def test_an_unknown_name_is_one_line_of_an_error_when_strict(fake_site):
    assert _stderr(fake_site, "plugins", "list", KDPLUG_STRICT="1").splitlines() == [f"error: {TOLD}"]


def test_a_check_says_it_among_its_findings_only(fake_site):
    lines = _stderr(fake_site, "plugins", "check").splitlines()
    assert [
        line for line in lines if "has taken 10 s so far" not in line
    ] == []  # a busy machine imports transformers slowly


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_what_looks_nothing_up_does_not_say_it(fake_site, word):
    assert _stderr(fake_site, word) == ""
