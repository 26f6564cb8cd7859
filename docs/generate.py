"""Write the generated spans of the reference pages: `python docs/generate.py`, or `--check` to only compare.

A span is the text between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``; the text around it is written by hand. Spans
are generated from the code: entries, models, hook specs, docstrings, commands.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from spans import SPANS

DOCS = Path(__file__).parent
_SPAN = re.compile(r"(<!-- generated: ([\w .-]+) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return ``text`` with every span regenerated."""
    return _SPAN.sub(lambda match: f"{match[1]}\n{SPANS[match[2]]().strip()}\n\n{match[4]}", text)


def stale() -> dict[Path, str]:
    """Return the new text of each page whose spans do not match the code."""
    pages = {
        page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts
    }
    return {page: new for page, text in pages.items() if (new := filled(text)) != text}


def main() -> int:
    """Write stale pages; with ``--check``, list them instead and return 1 if there are any."""
    found, check = stale(), "--check" in sys.argv[1:]
    for page, text in found.items():
        if check:
            print(f"{page.relative_to(DOCS.parent)} is stale: run python docs/generate.py")
        else:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(DOCS.parent)}")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
