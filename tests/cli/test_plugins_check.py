"""``kdplug plugins check``: what is wrong, where, and what mends it."""

from __future__ import annotations

import json

import pytest

GOOD = 'def f(student_logits, teacher_logits):\n    "A loss."\n'


def _add(site, source):
    site.add("kdplug-a", files={"kdplug_a.py": source}, losses={"x": "kdplug_a:f"})


def test_an_error_is_reported_with_its_place_and_its_fix(kdplug, fake_site):
    _add(fake_site, "def f(student_logit):\n    'A loss.'")
    with fake_site.host():
        done = kdplug("plugins", "check", "kdplug-a")
    head, where, fix, _, count = done.stdout.splitlines()
    assert head.startswith("error   kdplug-a [signature] x (kdplug-a) requests input 'student_logit'")
    assert where == f"        in    {fake_site.folder / 'kdplug_a.py'}:1"
    assert fix.startswith("        fix   correct its signature")
    assert count == "kdplug-a: 1 error, 0 warnings"


def test_the_exit_status_is_1_where_there_is_an_error(kdplug, fake_site):
    _add(fake_site, "1 / 0")
    with fake_site.host():
        assert kdplug("plugins", "check", "kdplug-a").exit_code == 1


@pytest.mark.parametrize("source", [GOOD, "def f(student_logits): ..."])
def test_it_is_0_where_there_is_none_or_a_warning(kdplug, fake_site, source):
    _add(fake_site, source)
    with fake_site.host():
        assert kdplug("plugins", "check", "kdplug-a").exit_code == 0


@pytest.mark.parametrize(
    ("names", "says"),
    [((), "1 plugin installed: no problems\n"), (("Kdplug_A",), "Kdplug_A: no problems\n")],
)
def test_without_trouble_it_names_what_was_checked(kdplug, fake_site, names, says):
    _add(fake_site, GOOD)
    with fake_site.host():
        assert kdplug("plugins", "check", *names).stdout == says


def test_json_has_one_object_for_each_finding(kdplug, fake_site):
    _add(fake_site, "def f(student_logits): ...")
    with fake_site.host():
        (finding,) = json.loads(kdplug("plugins", "check", "--json", "kdplug-a").stdout)
    assert list(finding) == ["dist", "check", "level", "what", "where", "fix"]
    assert (finding["dist"], finding["check"], finding["level"]) == ("kdplug-a", "docstring", "warning")


def test_what_a_plugin_prints_does_not_spoil_the_json(kdplug, fake_site):
    _add(fake_site, f"print('hello')\n{GOOD}")
    with fake_site.host():
        assert json.loads(kdplug("plugins", "check", "--json", "kdplug-a").stdout) == []


def test_an_unknown_distribution_is_an_error(kdplug, fake_site):
    _add(fake_site, GOOD)
    with fake_site.host():
        done = kdplug("plugins", "check", "kdplug-aa")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Did you mean 'kdplug-a'?" in done.stderr


def test_without_a_name_every_plugin_is_checked(kdplug, fake_site):
    _add(fake_site, "1 / 0")
    fake_site.add("kdplug-b", files={"kdplug_b.py": "1 / 0"}, plugins={"hooks": "kdplug_b"})
    with fake_site.host():
        found = json.loads(kdplug("plugins", "check", "--json").stdout)
    assert {(one["dist"], one["check"]) for one in found} == {("kdplug-a", "broken"), ("kdplug-b", "hook")}
