"""The errors, drawn as a tree."""

from __future__ import annotations

import re

from kdplug import errors
from spans.prose import first_line


def error_tree() -> str:
    """The tree that stands at the top of the module, and what each error means."""
    tree = re.search(r"(?m)^    KdplugError$(?:\n {4}.*)*", errors.__doc__ or "")
    assert tree is not None, "kdplug/errors.py draws no tree"
    drawn = "\n".join(line[4:] for line in tree[0].splitlines())
    names = [name for name in re.findall(r"\w+Error", drawn) if hasattr(errors, name) and name in errors.__all__]
    rows = [f"| `{name}` | {first_line(getattr(errors, name))} |" for name in dict.fromkeys(names)]
    return "\n".join([f"```text\n{drawn}\n```", "", "| error | meaning |", "|---|---|", *rows])
