"""Whether a plugin was written for the kdplug that is installed, told from its metadata alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from kdplug.contracts.version import VERSION


def unmet(requirements: Iterable[str], version: str = VERSION) -> str | None:
    """The first of a plugin's requirements on kdplug that ``version`` does not meet, as ``kdplug>=2,<3``.

    A requirement under an ``extra``, or under a marker that does not hold here, asks for nothing; one that cannot be read
    says nothing.
    """
    return next((text for line in requirements if (text := _unmet(line, version)) is not None), None)


@cache
def _unmet(line: str, version: str) -> str | None:
    try:
        wanted = Requirement(line)
        asks = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    except (ValueError, UndefinedEnvironmentName):  # the line, or a comparison in its marker, means nothing
        return None
    if not asks:
        return None
    return None if wanted.specifier.contains(version, prereleases=True) else f"kdplug{wanted.specifier}"
