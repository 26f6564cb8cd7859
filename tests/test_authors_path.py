"""The tutorial's commands are the ones that are run, and lead where it says."""

from __future__ import annotations

import json

import pytest
from benchmarks.authors_path import PAGE, steps, walk

from kdplug.cli.new_plugin import make_project
from kdplug.cli.scaffold import SCAFFOLDS

STEPS = list(steps())
TEXTS = make_project("kdplug-myloss", SCAFFOLDS["loss"], "Apache-2.0").texts


def test_the_page_goes_from_a_new_project_over_an_edit_to_a_run_and_tests():
    landmarks = ["kdplug plugins new", "(edit one line", "pip install -e", "kdplug run", "pytest"]
    taken = [mark for step in STEPS for mark in landmarks if str(step).startswith(mark)]
    assert taken == landmarks


def test_every_shell_block_of_the_page_is_taken():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("```sh\n") + text.count("```diff\n") == text.count("```") // 2


def test_the_line_to_edit_is_in_the_new_project_once():
    (edit,) = [step for step in STEPS if step.kind == "diff"]
    assert TEXTS[edit.text].splitlines().count(edit.old) == 1


def test_every_file_that_the_page_names_is_in_the_new_project():
    rows = [line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert rows
    assert set(rows) <= set(TEXTS)


@pytest.mark.slow
def test_the_whole_path_works_and_the_edit_counts(tmp_path):
    for step, _, done in walk(tmp_path):
        assert done is None or done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
    record = json.loads((tmp_path / "work/kdplug-myloss/runs/myloss/kdplug-run.json").read_text())
    assert '"name": "kdplug-myloss:myloss", "min_confidence": 0.4' in json.dumps(record)
    (plugin,) = [plugin for plugin in record["plugins"] if plugin["dist"] == "kdplug-myloss"]
    assert plugin["editable"]
