"""Find words of this project's former dialect in sources, docs and examples.

    python tests/plain_english.py [PATH ...]

Prints each hit as file:line; the exit status is 1 if there is one. The command line's help is part of the sources.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("kdplug", "plugins", "docs", "examples", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
DATA = ("examples/data.py",)  # word lists of synthetic texts
ENDINGS = {".py", ".md", ".yaml", ".toml", ".tmpl"}

PATTERNS = {
    r"\b(told|tells?)\b": "report, warn, raise, distinguish, name",
    r"\b(stands?|stood)\b": "is, is listed, replaces, means",
    r"\bbeside\b": "with, next to, in addition to",
    r"\banew\b": "again",
    r'"""(What|How|Whether|Which|Who|Where)\b': "a sentence: subject, verb, object; or a noun phrase",
    r"\bask(s|ed)? (about|the teacher)\b|\bteachers? (is|are|was) asked\b": "run the teacher",
    r"\bteacher'?s? (says?|said)\b|\bsays? so\b": "teacher outputs; declares",
    r"\b(goes|go|went|going) on\b": "resume, continue",
    r"\bat hand\b|\blet go of\b|\bfound out\b|\bfinds? out\b": "available, release, detect",
    r"\bof (one's|its|their|your|our) own\b": "its own X, your own X, a separate X",
    r"\blies? in\b": "is in",
    r"\b(does not|cannot) know\b|\bknows (the|its|which|how)\b": "contain, express, determine; X is unknown",
    r"\bsays\b": "declares, specifies, explains, determines",
    r"\basks? for\b": "request, need, require",
    r"\b(is|are) (gone|refused)\b|### What is refused": "was removed; raises an error",
    r"\bequally (many|long)\b|\bone shape\b": "the same number, length or shape",
    r"\b(an)?other (vocabulary|tokenizer|value|result|tokens?|inputs?|cache|values) than\b": "a different X from",
    r"\b(term|loss|match) is off\b": "is disabled",
    r"\b(has|have) to (return|call|hold|be (called|saved|trained by))\b": "must",
    r"\bgive (exactly one|either|one per)\b": "set, pass",
    r"\bwrit(e|ten|ing) into\b": "write to",
    r"\bmust (not )?hold (0|a|at|all|integer|')": "must contain",
    r"\b(mask|labels|temperature|shapes|file|folder|weights?)\b.{0,40}\bdo(es)? not fit (?!in|on)": "does not match",
    r'"""Raises:': "a sentence: Raise ``X`` if",
    r"\b(nobody|alike|hence|nought|mends?|mended|mending)\b": "no one, equal, so, nothing, fix",
}


def hits(places: list[Path]) -> Iterator[str]:
    """Yield ``file:line: words (use: better words)`` for each hit."""
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        for file in files:
            name = str(file.relative_to(ROOT))
            if (
                file.suffix not in ENDINGS
                or name in DATA
                or {"tests", "__pycache__", "_build"} & set(file.relative_to(ROOT).parts)
            ):
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                for pattern, better in PATTERNS.items():
                    if found := re.search(pattern, line):
                        yield f"{name}:{number}: {found[0].lstrip(chr(34))!r} (use: {better})"


def main() -> int:
    """Print the hits in the given places, by default everywhere."""
    found = list(hits([Path(place).resolve() for place in sys.argv[1:]] or [ROOT / place for place in PLACES]))
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
