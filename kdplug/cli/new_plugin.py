"""``kdplug plugins new``: a complete plugin project."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from kdplug.cli.failure import told
from kdplug.cli.project import Project, make_project, names_of, read_license
from kdplug.cli.scaffold import Scaffold, read_scaffold
from kdplug.errors import AmbiguousEntryError, ConfigError, EntryError, NotInstalledError
from kdplug.host.kind import HOOK_GROUP, KINDS
from kdplug.host.metadata import installed_version
from kdplug.host.name import fold_distribution
from kdplug.host.registry import REGISTRIES


def new_plugin(
    name: Annotated[str, typer.Argument(help="The name of the distribution, such as kdplug-myloss.")],
    *,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="K",
            help="What it offers: loss, projection, weight-scheduler, temperature-scheduler, teacher-combiner, layer-map, "
            "task, cache-codec or hooks.",
        ),
    ],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="WHAT", help="What a loss compares: logits (the default) or features."),
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", metavar="L", help="Apache-2.0, MIT, BSD-3-Clause or none.")
    ] = "Apache-2.0",
    folder: Annotated[Path, typer.Option("--dir", metavar="D", help="The parent folder of the new project.")] = Path(),
) -> None:
    """Create a plugin project: entry point, typed module, tests, README, recipe and license."""
    with told():
        scaffold = read_scaffold(kind, on)
        chosen = read_license(license_name)
        module, entry = names_of(name)
        _check_free(name, module)
        notice, config_name = _clash(scaffold, name, entry)
        project = make_project(name, scaffold, chosen, config_name)
        written = write_project(project, folder)
    typer.echo(f"Made {written}: {', '.join(project.texts)}")
    if notice:
        typer.echo(f"Notice: {notice}")
    typer.echo(f"\nNext:\n  cd {written}\n  pip install -e '.[test]'\n  pytest")
    if scaffold.has_recipe:
        typer.echo("  kdplug run recipe.yaml")


def write_project(project: Project, folder: Path) -> Path:
    """Write the files into a new folder in ``folder``, named as the distribution, and return it.

    Raises: ``ConfigError`` where it exists, or cannot be made.
    """
    place = folder / project.dist
    try:
        place.mkdir(parents=True)
        for path, text in project.texts.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text, encoding="utf-8", newline="\n")
    except FileExistsError as error:
        raise ConfigError(f"{place} is already there, and nothing is overwritten", field="NAME") from error
    except OSError as error:
        raise ConfigError(f"cannot write into {place}: {error.strerror}", field="--dir") from error
    return place


def _check_free(dist: str, module: str) -> None:
    """Raises: ``ConfigError`` where the new module would hide one that Python finds already, or be hidden by it."""
    found = find_spec(module)
    if found is not None:
        again = f", or uninstall it first: pip uninstall {dist}" if installed_version(dist) else ""
        raise ConfigError(
            f"its module would be {module!r}, and there is one of that name: {found.origin or 'a folder on the path'}. "
            f"Take another name{again}",
            field="NAME",
        )


def _clash(scaffold: Scaffold, dist: str, entry: str) -> tuple[str | None, str | None]:
    """What to know about entries of the same name, and what a config has to write because of them."""
    if scaffold.group == HOOK_GROUP:
        return None, None
    registry = REGISTRIES[next(kind.plural for kind in KINDS.values() if kind.group == scaffold.group)]
    own = f"{dist}:{entry}"
    try:
        others = [registry.entry(entry, quiet=True)]
    except AmbiguousEntryError:
        others = [found for found in registry.entries() if found.name == entry]
    except NotInstalledError as error:
        return f"{error}. A config has to write {own} for yours.", own
    except EntryError:
        return None, None
    others = [found for found in others if fold_distribution(found.dist) != fold_distribution(dist)]
    if not others:
        return None, None
    owners = ", ".join(found.qualified for found in others)
    return f"{entry!r} is offered already: {owners}. A config has to write {own} for yours.", own
