"""The hierarchy of error classes."""

from __future__ import annotations

import re

from kdplug import errors


def error_tree() -> str:
    """Return the tree in the docstring of ``kdplug.errors``."""
    tree = re.search(r"(?m)^    KdplugError$(?:\n {4}.*)*", errors.__doc__ or "")
    assert tree is not None, "kdplug/errors.py has no tree of errors"
    drawn = "\n".join(line[4:] for line in tree[0].splitlines())
    return f"```text\n{drawn}\n```"
