"""The package uses the public face only, wraps no model, and its README and entries agree."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from pathlib import Path

import kdplug_papers
import pytest
from all_recipes import RECIPES

import kdplug

SOURCES = sorted(Path(kdplug_papers.__file__).parent.rglob("*.py"))
PROJECT = Path(__file__).parents[1]
POINTS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
ENTRIES = [(group.removeprefix("kdplug."), name) for group, names in POINTS.items() for name in names]
ALLOWED = {"kdplug", "kdplug.testing", "torch", "kdplug_papers"}
WRAPPING = {
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_module_forward_hook",
    "register_full_backward_hook",
    "setattr",
    "__setattr__",
    "add_module",
    "set_submodule",
}
"""Names with which code gets into a model that it did not make."""


def imported(tree: ast.Module) -> set[str]:
    """Return every imported module: of kdplug the whole name, of others the first part."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module)
    return {name if name.startswith("kdplug.") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_imports_only_kdplug_and_torch(source):
    modules = imported(ast.parse(source.read_text(encoding="utf-8")))
    assert modules - ALLOWED - sys.stdlib_module_names == set()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_uses_only_public_names_of_kdplug(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "kdplug"]
    assert {alias.name for node in nodes for alias in node.names} <= set(kdplug.__all__)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_wraps_no_model(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used & WRAPPING == set()
    replaced = [
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and target.attr in {"forward", "__class__", "__call__"}
    ]
    assert replaced == []


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_the_readme_lists_each_entry_with_its_number_of_lines(kind, name):
    target = getattr(kdplug, kind).entry(f"kdplug-papers:{name}").load()
    (row,) = re.findall(rf"^\|.*\| `{name}` \| (\d+) \|.*\|$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert int(row) == len(inspect.getsource(target).splitlines())


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_a_bare_name_means_this_package_and_a_recipe_runs_it(kind, name):
    assert getattr(kdplug, kind).entry(name).dist == "kdplug-papers"
    written = [f"{recipe.distillation} {recipe.transforms} {recipe.entries}" for recipe in RECIPES.values()]
    written += [str(kdplug.Recipe.from_file(file).to_dict()) for file in sorted((PROJECT / "recipes").glob("*.yaml"))]
    assert any(re.search(rf"'{name}'", text) for text in written)
