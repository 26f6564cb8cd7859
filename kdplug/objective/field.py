"""Where in a config something went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdplug.errors import KdplugError

Path = tuple[object, ...]
"""The path of a field: ``("intermediate_matches", 1, "loss")``."""


@contextmanager
def below(*path: object) -> Iterator[None]:
    """Put ``path`` in front of the field that an error inside the block names."""
    try:
        yield
    except KdplugError as error:
        raise error.at(*path) from error.__cause__
