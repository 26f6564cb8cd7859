"""The text of a message as it stands in the source, ``…`` where it holds a value.

A message need not stand where it is raised: it may be the name of a variable, what a function returns, or an argument that the
callers of a function give. What decides is whether any fixed words are left; only where there are none is it followed further.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HOLE = "…"
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Form = list[str | ast.expr]
_DEEPEST = 8


class Source:
    """One module, walked through once: its functions and classes, and its calls by the name of what is called."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.tree = ast.parse(text)
        self.functions: dict[str, list[_Function]] = {}
        self.calls: dict[str, list[ast.Call]] = {}
        self.classes: list[ast.ClassDef] = []
        self.owner: dict[ast.AST, _Function] = {}
        """The innermost function that holds a node."""
        self._walk(self.tree, None)

    @classmethod
    def read(cls, path: Path) -> Source:
        return cls(path, path.read_text(encoding="utf-8"))

    def _walk(self, node: ast.AST, owner: _Function | None) -> None:
        if owner is not None:
            self.owner[node] = owner
        if isinstance(node, _Function):
            self.functions.setdefault(node.name, []).append(node)
            owner = node
        elif isinstance(node, ast.Call):
            self.calls.setdefault(called(node), []).append(node)
        elif isinstance(node, ast.ClassDef):
            self.classes.append(node)
        for child in ast.iter_child_nodes(node):
            self._walk(child, owner)


def has_words(text: str) -> bool:
    """Whether anything is left that a reader could search for."""
    return re.search(r"[^\W_]{2,}", text) is not None


@dataclass(frozen=True, slots=True)
class Templates:
    """Reads templates out of all modules together."""

    sources: tuple[Source, ...]

    def of(self, node: ast.expr, source: Source, depth: int = 0) -> list[str]:
        """What the text that ``node`` stands for may look like, without those of no words."""
        found = [text for form in _forms(node) for text in self._of_form(form, source, depth)]
        return list(dict.fromkeys(found))

    def _of_form(self, form: _Form, source: Source, depth: int) -> list[str]:
        text = _tidy(_written(form))
        if has_words(text):
            return [text]
        for place, hole in enumerate(form):
            inner = [] if isinstance(hole, str) or depth == _DEEPEST else self._behind(hole, source, depth + 1, form)
            if inner:
                return [_tidy(_written([*form[:place], text, *form[place + 1 :]])) for text in inner]
        return []

    def _behind(self, node: ast.expr, source: Source, depth: int, form: _Form) -> list[str]:
        if isinstance(node, ast.Name):
            return self._of_name(node, source, depth, is_all=len(form) == 1)
        if isinstance(node, ast.Call):
            return self._of_call(node, source, depth)
        if isinstance(node, ast.Subscript):
            return self._behind(node.value, source, depth, form)
        return self.of(node.elt, source, depth) if isinstance(node, ast.ListComp) else []

    def _of_name(self, node: ast.Name, source: Source, depth: int, *, is_all: bool) -> list[str]:
        """What is assigned to a variable; where it is all of a message, also what is given for a parameter."""
        function = source.owner.get(node)
        if function is None:
            return []
        given = [
            one.value
            for one in ast.walk(function)
            if isinstance(one, (ast.Assign, ast.AnnAssign))
            and one.value is not None
            and any(isinstance(target, ast.Name) and target.id == node.id for target in _targets(one))
        ]
        found = [text for value in given for text in self.of(value, source, depth)]
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        if node.id not in names or not is_all:
            return found
        place = names.index(node.id) - (names[0] in ("self", "cls"))
        return found + [
            text
            for other in self.sources
            for call in other.calls.get(function.name, ())
            if place < len(call.args)
            for text in self.of(call.args[place], other, depth)
        ]

    def _of_call(self, node: ast.Call, source: Source, depth: int) -> list[str]:
        """What a function returns; the receiver of a method of text."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("rstrip", "strip", "removeprefix"):
            return self.of(node.func.value, source, depth)
        name, owner = called(node), node.func.value if isinstance(node.func, ast.Attribute) else None
        if not (owner is None or (isinstance(owner, ast.Name) and owner.id in ("self", "cls"))):
            return []
        near = [(source, function) for function in source.functions.get(name, ())]
        far = [(other, function) for other in self.sources for function in other.functions.get(name, ())]
        return [
            text
            for other, function in near or far
            for one in ast.walk(function)
            if isinstance(one, ast.Return) and one.value is not None
            for text in self.of(one.value, other, depth)
        ]


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def called(node: ast.Call) -> str:
    """The last word of what is called; nothing where it has no name."""
    function = node.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _forms(node: ast.expr) -> list[_Form]:
    """The forms that a text has where it stands: one for each side of a conditional."""
    if isinstance(node, ast.JoinedStr):
        return [[_part(part) for part in node.values]]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [[*left, *right] for left, right in product(_forms(node.left), _forms(node.right))]
    if isinstance(node, ast.IfExp):
        return [*_forms(node.body), *_forms(node.orelse)]
    return [[_part(node)]]


def _part(node: ast.expr) -> str | ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return f" Did you mean {HOLE}?" if isinstance(value, ast.Call) and called(value) == "did_you_mean" else value


def _written(form: _Form) -> str:
    return "".join(part if isinstance(part, str) else HOLE for part in form)


def _tidy(text: str) -> str:
    """On one line, holes that touch drawn together."""
    return re.sub(rf"{HOLE}(?:\.?{HOLE})+", HOLE, " ".join(text.split()))
