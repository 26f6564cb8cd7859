"""A docstring as Markdown."""

from __future__ import annotations

import inspect
import re

_LABEL = re.compile(r"^(Shapes|Settings|Relations|Raises|Source|Sources|Inputs|Returns|Note): ", re.MULTILINE)
_LITERAL = re.compile(r"(?:^|(?<=\n))([^\n]*)::\n\n((?:(?: {4}[^\n]*)?\n)*(?: {4}[^\n]*))", re.MULTILINE)


def prose(documented: object) -> str:
    """The docstring of ``documented``: literal blocks fenced, and each labelled line a paragraph of its own."""
    text = inspect.getdoc(documented) or ""
    assert text, f"{documented!r} has no docstring"
    text = _LITERAL.sub(_fenced, text)
    return _LABEL.sub(r"\n*\1:* ", text).replace("\n\n\n", "\n\n").strip()


def first_line(documented: object) -> str:
    """The first paragraph of the docstring, on one line."""
    return " ".join(prose(documented).split("\n\n")[0].split())


def cell(text: str) -> str:
    """``text`` fit for a table."""
    return " ".join(text.split()).replace("|", r"\|")


def _fenced(match: re.Match[str]) -> str:
    lead = f"{match[1].rstrip()}:\n\n" if match[1].strip() else ""
    return f"{lead}```{_language(match[2])}\n{inspect.cleandoc(match[2])}\n```"


def _language(block: str) -> str:
    """``py`` is highlighted as Python is, and is not run as a test as ``python`` blocks are."""
    return "py" if "@kdplug" in block or "import " in block else "text"
