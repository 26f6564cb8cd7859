"""Write the generated spans of the reference pages: `python docs/generate.py`, or `--check` to only look.

A span stands between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``; what stands around it is written by
hand. Everything in a span is read from the code: entries, models, hook specs, docstrings, commands.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from spans import SPANS

DOCS = Path(__file__).parent
_SPAN = re.compile(r"(<!-- generated: ([\w .-]+) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)


def filled(text: str) -> str:
    """``text`` with every span made anew."""
    return _SPAN.sub(lambda match: f"{match[1]}\n{SPANS[match[2]]().strip()}\n\n{match[4]}", text)


def stale() -> dict[Path, str]:
    """Each page whose spans are not what the code says now, with its new text."""
    pages = {
        page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts
    }
    return {page: new for page, text in pages.items() if (new := filled(text)) != text}


def main() -> int:
    """Write stale pages, or name them where ``--check`` is given; the exit status says whether there were any to name."""
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
