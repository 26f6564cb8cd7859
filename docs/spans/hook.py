"""Reference of the hooks."""

from __future__ import annotations

import inspect

from kdplug.host import hookspec
from spans.prose import prose


def hooks() -> str:
    """Return every hook with its signature and its docstring, which contains an example."""
    found = [value for name, value in vars(hookspec).items() if name.startswith(hookspec.PREFIX)]
    return "\n\n".join(
        f"## `{hook.__name__}({', '.join(inspect.signature(hook).parameters)})`\n\n{prose(hook)}" for hook in found
    )
