"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re

_LABEL = re.compile(r"^(Shapes|Settings|Relations|Raises|Source|Sources|Inputs|Returns|Note): ", re.MULTILINE)
_LITERAL = re.compile(r"(?:^|(?<=\n))([^\n]*)::\n\n((?:(?: {4}[^\n]*)?\n)*(?: {4}[^\n]*))", re.MULTILINE)


def prose(documented: object) -> str:
    """Return the docstring with fenced literal blocks and each labelled line as a separate paragraph."""
    text = inspect.getdoc(documented) or ""
    assert text, f"{documented!r} has no docstring"
    text = _LITERAL.sub(_fenced, text)
    return _LABEL.sub(r"\n*\1:* ", text).replace("\n\n\n", "\n\n").strip()


def cell(text: str) -> str:
    """Return ``text`` escaped for a table cell."""
    return " ".join(text.split()).replace("|", r"\|")


def _fenced(match: re.Match[str]) -> str:
    lead = f"{match[1].rstrip()}:\n\n" if match[1].strip() else ""
    return f"{lead}```{_language(match[2])}\n{inspect.cleandoc(match[2])}\n```"


def _language(block: str) -> str:
    """Return ``py`` for Python: highlighted, but not run as a test like ``python`` blocks."""
    return "py" if "@kdplug" in block or "import " in block else "text"
