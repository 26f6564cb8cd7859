"""Tables of the test kit: the declarations of each suite of laws, and the usual shapes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping

from kdplug import testing
from kdplug.testing.law import Laws
from kdplug.testing.loss.case import _USUAL_TEACHERS, USUAL_SHAPES
from spans.prose import cell

_AXES: Mapping[str, str] = {
    "logits": "batch, tokens, classes",
    "sequences": "batch, tokens, width",
    "pooled": "batch, width",
    "maps": "batch, channels, height, width",
    "attention": "batch, heads, tokens, tokens",
    "relations": "batch, tokens, width",
}


def declarations() -> str:
    """Return a table of the attributes for each suite, with docstrings and defaults, and one of those of every suite."""
    suites = {f"`{name}`": getattr(testing, name) for name in testing.__all__ if name.endswith("Laws")}
    parts = [_section("Every suite", Laws.__mro__)]
    for title, suite in suites.items():
        parts.append(_section(title, [one for one in suite.__mro__ if one not in Laws.__mro__]))
    return "\n\n".join(parts)


def usual_shapes() -> str:
    """Return a table of the shapes that have a name."""
    rows = [f'| `"{name}"` | `{shape}` | {_meaning(name)} |' for name, shape in USUAL_SHAPES.items()]
    return "\n".join(["| name | shape | axes |", "|---|---|---|", *rows])


def _meaning(name: str) -> str:
    other = _USUAL_TEACHERS.get(name)
    return f"`[{_AXES[name]}]`" + (f"; the teacher's is `{other}`" if other is not None else "")


def _section(title: str, owners: list[type] | tuple[type, ...]) -> str:
    rows = [f"| `{name}` | `{default}` | {text} |" for owner in owners for name, default, text in _attributes(owner)]
    return "\n".join([f"### {title}", "", "| attribute | default | meaning |", "|---|---|---|", *rows])


def _attributes(owner: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and docstring of each public class attribute, in the order of the source."""
    if owner is object:
        return
    (tree,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target).startswith("_"):
            continue
        name = ast.unparse(node.target)
        assert node.value is not None
        assert isinstance(after, ast.Expr), f"{owner.__name__}.{name} has no docstring"
        yield name, ast.unparse(node.value), cell(ast.literal_eval(after.value))
