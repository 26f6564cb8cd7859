"""Packages and versions that a config requires."""

from __future__ import annotations

from typing import Annotated

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion
from pydantic import AfterValidator, Field

from kdplug.config.model import ConfigModel, Text
from kdplug.config.words import shown
from kdplug.errors import ConfigError, PluginError
from kdplug.host.acting import check_offers_hooks
from kdplug.host.active import active
from kdplug.host.metadata import installed_version
from kdplug.host.name import fold_distribution


def check_requirement(text: str) -> str:
    """Return ``text`` if an installed package meets it. Nothing is ever installed.

    Raises: ``ConfigError`` if ``text`` is not a requirement; ``PluginError`` if no installed package meets it.
    """
    try:
        wanted = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{shown(text)} is not a requirement such as 'kdplug-myloss>=0.2': {reason}") from None
    if wanted.url is not None:
        raise ConfigError(f"{text!r} contains a URL. Write a name and versions, such as '{wanted.name}>=0.2'")
    if wanted.marker is not None and not wanted.marker.evaluate():
        return text
    found = _version(wanted.name)
    if found is None:
        raise PluginError(f"needs {_plain(wanted)}, which is not installed: {_command(wanted)}")
    if not _meets(wanted, found):
        raise PluginError(f"needs {_plain(wanted)}, but {wanted.name} {found} is installed: {_command(wanted)}")
    return text


def _version(name: str) -> str | None:
    """Return the version whose entries the registries use. A stale egg-info may name another one."""
    seen = (dist.version for dist in active().dists if fold_distribution(dist.name) == fold_distribution(name))
    return next(seen, None) or installed_version(name)


def _meets(wanted: Requirement, version: str) -> bool:
    try:
        return wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return not wanted.specifier


def _plain(wanted: Requirement) -> str:
    return f"{wanted.name}{wanted.specifier}"


def _command(wanted: Requirement) -> str:
    return "pip install " + (f'"{_plain(wanted)}"' if wanted.specifier else wanted.name)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ConfigError(f"contains a plugin more than once: {', '.join(names)}")
    return names


class PluginsConfig(ConfigModel):
    """The ``plugins`` section of a config or a recipe."""

    require: tuple[Annotated[Text, AfterValidator(check_requirement)], ...] = Field(
        default=(),
        description="requirements in pip's spelling (`kdplug-myloss>=0.2`), each checked against what is installed",
    )
    hooks: Annotated[tuple[Annotated[Text, AfterValidator(check_offers_hooks)], ...], AfterValidator(_distinct)] = (
        Field(
            default=(),
            description="installed packages whose hooks may change the run; hooks of other packages only observe it",
        )
    )


Plugins = Annotated[
    PluginsConfig,
    Field(
        description='packages that must be installed, `{require: ["kdplug-myloss>=0.2"]}`, and packages whose hooks may '
        "change the run, `{hooks: [kdplug-myhooks]}`"
    ),
]
