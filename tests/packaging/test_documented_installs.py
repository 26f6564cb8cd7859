"""Every installation that a page describes is run, by ``documented_installs.py`` or by what is named here."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("documented_installs.py")
ELSEWHERE = {
    ("README.md", "pip install -r tests/requirements.txt && pytest"): ".ci/run",
    ("docs/tutorials/first-loss.md", "pip install -e '.[test]'"): "tests/benchmarks/authors_path.py",
    ("docs/how-to/publish-a-plugin.md", "pip install dist/kdplug_myloss-0.1.0-py3-none-any.whl"): (
        "tests/test_third_party_plugin.py"
    ),
    ("examples/README.md", "pip install -r examples/requirements.txt && kdplug run examples/digits.yaml"): "README.md",
    ("examples/README.md", 'pip install -e "plugins/kdplug-tasks[transformers]"'): "docs/how-to/run-the-examples.md",
    ("examples/kdplug-myloss/README.md", "$ pip install ./examples/kdplug-myloss"): "tests/test_third_party_plugin.py",
    ("examples/kdplug-papers/README.md", "$ pip install ./examples/kdplug-papers"): "tests/test_papers_example.py",
    ("examples/kdplug-steplog/README.md", "$ pip install ./examples/kdplug-steplog"): "tests/test_steplog_example.py",
}
"""Page and command to what runs it, or to the page whose span holds it too."""

PROJECTS = {
    project["name"]: {*project.get("optional-dependencies", {})}
    for file in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"))
    for project in [tomllib.loads(file.read_text(encoding="utf-8"))["project"]]
}


def load():
    """The script. By its path, since this folder has the name of a library."""
    spec = importlib.util.spec_from_file_location("documented_installs", SCRIPT)
    module = sys.modules["documented_installs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()
PAGES = [page for page in script.PAGES if page.name != "errors.md"]  # its messages hold commands with gaps in them


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> set[str]:
    """The commands that install something, from the shell blocks of a page."""
    kinds = {"sh", "indented", "console", "text", "bash", "shell"}
    lines = [line for _, kind, text in script.blocks(page.read_text()) if kind in kinds for line in text.splitlines()]
    return {line.strip() for line in lines if re.match(r"\s*(\$ )?(python -m )?pip install", line)}


def run_commands(page: Path) -> set[str]:
    steps = [step for span in script.spans(page) for step in span.steps if step.kind == "sh"]
    return {line for step in steps for line in step.text.splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_installs_something_is_run(page):
    elsewhere = {command for where, command in ELSEWHERE if where == name(page)}
    assert commands(page) - run_commands(page) == elsewhere


@pytest.mark.parametrize("where", ELSEWHERE.items(), ids=lambda item: item[0][0])
def test_what_runs_it_elsewhere_exists(where):
    (_, command), other = where
    assert (ROOT / other).is_file()
    assert not other.endswith(".md") or command.split(" && ")[0].split()[-1] in " ".join(run_commands(ROOT / other))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_extra_that_a_page_names_exists(page):
    for command in re.findall(r"pip install ([^`\n]+)", page.read_text(encoding="utf-8")):
        for word in re.findall(r"kdplug[\w.-]*\[[\w,]+\]", command):
            try:
                requirement = Requirement(word)
            except InvalidRequirement:
                continue
            assert requirement.extras <= PROJECTS[requirement.name.rpartition("/")[2]], command


def test_the_page_on_installing_lists_every_extra():
    text = (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)} == PROJECTS["kdplug"]


def test_the_readme_installs_kdplug_and_then_runs_its_python_example():
    (span,) = [span for span in script.spans(ROOT / "README.md") if any(step.kind == "python" for step in span.steps)]
    assert [(step.kind, step.text.splitlines()[0]) for step in span.steps] == [
        ("sh", "pip install kdplug"),
        ("python", "import torch"),
    ]


def test_the_readme_installs_what_its_recipe_on_a_csv_needs_and_then_runs_it():
    (span,) = [span for span in script.spans(ROOT / "README.md") if span.options.get("files")]
    assert [step.kind for step in span.steps] == ["sh", "file", "sh"]
    assert span.steps[0].text == 'pip install "kdplug[transformers,report]"'
    assert "train.csv" in span.steps[1].text
    assert f"kdplug run {span.steps[1].name}" in span.steps[2].text


def test_the_continuous_check_runs_them():
    assert "documented_installs.py" in (ROOT / ".ci/build").read_text()
    run = (ROOT / ".ci/run").read_text()
    assert '.ci/build "$work/dist"' in run
    assert 'documented_installs.py "$work/dist" --only README' in run


def page(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "page.md"
    file.write_text(text)
    return file


def test_a_span_holds_commands_programs_and_files_in_order(tmp_path):
    text = (
        "    pip install before\n\n<!-- fresh environment has=kdplug[tasks] -->\n\n```sh\npip install it\n```\n\n"
        "```yaml\n# run.yaml\nseed: 1\n```\n\n```yaml\nonly: shown\n```\n\nprose\n\n    kdplug run run.yaml\n\n"
        "```python\nimport kdplug\n```\n\n<!-- end of fresh environment -->\n"
    )
    (span,) = script.spans(page(tmp_path, text))
    assert span.options == {"has": "kdplug[tasks]"}
    assert [(step.kind, step.text) for step in span.steps] == [
        ("sh", "pip install it"),
        ("file", "# run.yaml\nseed: 1"),
        ("sh", "kdplug run run.yaml"),
        ("python", "import kdplug"),
    ]
    assert span.steps[1].name == "run.yaml"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- fresh environment -->\n", "1: this comment has no partner"),
        ("<!-- end of fresh environment -->\n", "1: this comment has no partner"),
        ("<!-- fresh environment -->\n<!-- fresh environment -->\n", "2: this comment has no partner"),
        ("<!-- fresh environment wheel=1 -->\n<!-- end of fresh environment -->\n", "1: unknown option"),
    ],
)
def test_a_comment_that_would_run_nothing_is_an_error(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        list(script.spans(page(tmp_path, text)))
