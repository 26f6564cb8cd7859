"""The README is true: its example runs, its commands are the ones that are run, its tree is the tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
TEST_COMMAND = "pip install -r tests/requirements.txt && pytest"
RUN_COMMAND = "pip install -r examples/requirements.txt && kdplug run examples/digits.yaml"


def tree() -> dict[str, str]:
    """Path to caption, from the drawn tree, in which no path stands twice."""
    drawn = TEXT.split("## What is where")[1].split("```text\n")[1].split("```")[0]
    found, folders = {}, [""]
    for line in drawn.splitlines():
        indent, name, caption = re.fullmatch(r"( *)(\S+) {2,}(\S.*)", line).groups()
        folders[len(indent) // 2 + 1 :] = [folders[len(indent) // 2] + name]
        assert found.setdefault(folders[-1], caption) is caption, f"{folders[-1]} stands twice"
    return found


def folders_in(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder or "."], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    below = [line.removeprefix(folder) for line in listed.stdout.splitlines()]
    return {f"{folder}{line.split('/')[0]}/" for line in below if "/" in line}


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = list(Document.parse(str(README), PythonCodeBlockParser()))
    assert examples
    for example in examples:
        example.evaluate()
    assert "kd_loss" in capsys.readouterr().out


def test_the_python_example_is_about_fifteen_lines_long():
    block = TEXT.split("```python\n")[1].split("```")[0]
    assert len(block.strip().splitlines()) <= 18


def test_the_two_commands_are_in_the_readme():
    assert f"\n    {TEST_COMMAND}\n" in TEXT
    assert f"\n    {RUN_COMMAND}\n" in TEXT


def test_the_continuous_check_runs_the_readmes_test_command():
    assert f" bash -c '{TEST_COMMAND}' ;;\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", tree())
def test_every_path_in_the_tree_exists(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("folder", ["", "kdplug/", "plugins/"])
def test_every_folder_is_captioned(folder):
    assert folders_in(folder) <= set(tree())


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("snippet", re.findall(r"```yaml\n(.+?)```", TEXT, re.DOTALL))
def test_every_recipe_in_it_is_valid(snippet):
    from kdplug import Recipe
    from kdplug.recipes.task import build_task

    recipe = Recipe.from_yaml(snippet)
    assert recipe.distillation.resolved()
    assert build_task(recipe)


def test_the_plugin_snippet_loads_and_computes():
    import torch

    scope = {}
    exec(TEXT.split("```py\n")[1].split("```")[0], scope)
    assert scope["my_loss"](torch.ones(2, 3), torch.zeros(2, 3), 2.0, alpha=1.0) == 0.5
