"""The two requirement files take the CPU build of torch and install the checkout and every plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def lines(file: Path) -> list[str]:
    """The requirements of a file and of those that it includes."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip()
        if text.startswith("-r "):
            found += lines(file.parent / text.removeprefix("-r "))
        elif text and not text.startswith("#"):
            found.append(text)
    return found


@pytest.fixture(params=["examples/requirements.txt", "tests/requirements.txt"])
def requirements(request):
    return lines(ROOT / request.param)


def test_torch_is_pinned_to_the_one_version_that_comes_as_a_cpu_build(requirements):
    assert [line for line in requirements if line.startswith("torch=") or line == "torch"] == ["torch==2.13.0"]


def test_the_checkout_is_installed_editable_with_what_a_recipe_needs(requirements):
    assert any(line.startswith("-e .[") and "report" in line for line in requirements)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_is_installed_editable(requirements, plugin):
    assert f"-e plugins/{plugin}" in [line.partition("[")[0] for line in requirements]


def test_the_first_command_brings_no_transformers_and_the_tests_do():
    extra = "-e plugins/kdplug-tasks[transformers]"
    assert extra in lines(ROOT / "tests/requirements.txt")
    assert not [line for line in lines(ROOT / "examples/requirements.txt") if "transformers" in line]


def test_nothing_needs_an_option_that_stock_pip_lacks(requirements):
    options = {line.split()[0] for line in requirements if line.startswith("-")}
    assert options == {"-e"}
