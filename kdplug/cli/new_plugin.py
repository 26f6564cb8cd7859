"""``kdplug plugins new``: create a complete plugin project."""

from __future__ import annotations

import builtins
import keyword
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import kdplug
from kdplug.cli.scaffold import Scaffold, read_scaffold
from kdplug.cli.terminal import report_errors
from kdplug.errors import AmbiguousEntryError, ConfigError, EntryError, NotInstalledError, did_you_mean
from kdplug.host.kind import HOOK_GROUP, KINDS
from kdplug.host.metadata import installed_version
from kdplug.host.name import fold_distribution, is_entry_name, printable
from kdplug.host.registry import REGISTRIES

_DISTRIBUTION = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)
_PLACE = re.compile(r"\{\{(\w+)\}\}")

LICENSES = ("Apache-2.0", "MIT", "BSD-3-Clause", "none")


@dataclass(frozen=True, slots=True)
class Project:
    """A project to write: its names, and file texts by path."""

    dist: str
    module: str
    entry: str
    scaffold: Scaffold
    texts: Mapping[str, str]


def read_license(name: str) -> str:
    """Return the license called ``name``, ignoring case.

    Raises: ``ConfigError`` that suggests the nearest one.
    """
    by_fold = {known.casefold(): known for known in LICENSES}
    if name.casefold() not in by_fold:
        raise ConfigError(
            f"unknown license {name!r}.{did_you_mean(name, LICENSES)} Use one of {', '.join(LICENSES)}",
            field="--license",
        )
    return by_fold[name.casefold()]


def names_of(dist: str) -> tuple[str, str]:
    """Return the module and entry name of a distribution: ``kdplug_my_loss`` and ``my_loss`` for ``kdplug-my-loss``.

    Raises: ``ConfigError`` if ``dist`` is not a valid distribution name or yields no valid module or entry name.
    """
    if not _DISTRIBUTION.fullmatch(dist):
        raise ConfigError(
            f"{dist!r} is not a valid distribution name: use letters, digits, '-', '_' and '.', and start and end with "
            "a letter or a digit",
            field="NAME",
        )
    module = re.sub(r"[-_.]+", "_", dist).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        raise ConfigError(
            f"the project's module would have the name {module!r}, which Python cannot import. Use kdplug-{dist}",
            field="NAME",
        )
    entry = module.removeprefix("kdplug_")
    assert is_entry_name(entry)
    return module, entry


def make_project(dist: str, scaffold: Scaffold, license_name: str, config_name: str | None = None) -> Project:
    """Render the files of a project. ``config_name`` is the name for configs if the bare entry name is taken.

    Raises: ``ConfigError`` if ``dist`` is not a valid distribution name.
    """
    module, entry = names_of(dist)
    values = {
        "dist": dist,
        "module": module,
        "entry": entry,
        "config_name": config_name or entry,
        "summary": scaffold.summary,
        "group": scaffold.group,
        "dependencies": ", ".join(f'"{_with_range(name)}"' for name in scaffold.needs),
        "year": str(datetime.now(UTC).year),
        "holder": f"the {dist} authors",
        **_callable_names(scaffold, module, entry),
        **_file_values(scaffold, license_name),
        **_use_values(scaffold, config_name or entry),
    }
    values["use"] = _filled(f"{scaffold.folder}/use.yaml", values).rstrip()
    texts = {name: _filled(f"project/{name.lstrip('.')}", values) for name in ("pyproject.toml", "README.md")}
    texts[f"{module}.py"] = _filled(f"{scaffold.folder}/module.py", values)
    texts[f"tests/test_{module.removeprefix('kdplug_')}.py"] = _filled(f"{scaffold.folder}/test.py", values)
    if scaffold.has_recipe:
        texts["recipe.yaml"] = _filled("project/recipe.yaml", values)
    texts[".gitignore"] = _filled("project/gitignore", values)
    if license_name != "none":
        texts["LICENSE"] = _filled(f"license/{license_name}", values)
    return Project(dist, module, entry, scaffold, texts)


def _callable_names(scaffold: Scaffold, module: str, entry: str) -> dict[str, str]:
    """Return names for the function or class: the entry's, unless it clashes with a name in the templates or Python."""
    text = _template(f"{scaffold.folder}/module.py") + _template(f"{scaffold.folder}/test.py")
    taken = {*re.findall(r"\w+", text), *keyword.kwlist, *keyword.softkwlist, *dir(builtins), module}
    function, cls = entry, _camel(entry)
    if function in taken or not function.isidentifier():
        function = f"{scaffold.noun.replace(' ', '_')}_{entry}"
    if cls in taken or not cls.isidentifier():
        cls = _camel(f"{entry}_{scaffold.noun}" if entry[0].isalpha() else f"{scaffold.noun}_{entry}")
    target = f"{module}:{cls if scaffold.is_class else function}"
    if scaffold.group == HOOK_GROUP:  # a module, or an object with state in it
        target = f"{module}:hooks" if scaffold.is_class else module
    return {"function": function, "cls": cls, "target": target}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[_ ]+", name))


def _file_values(scaffold: Scaffold, license_name: str) -> dict[str, str]:
    """Return the values in pyproject.toml for the license and the optional files."""
    more = [*(["/recipe.yaml"] if scaffold.has_recipe else []), *(["/LICENSE"] if license_name != "none" else [])]
    lines = f'license = "{license_name}"\nlicense-files = ["LICENSE"]\n' if license_name != "none" else ""
    return {"license_lines": lines, "more_files": "".join(f', "{file}"' for file in more)}


def _use_values(scaffold: Scaffold, config_name: str) -> dict[str, str]:
    """Return the recipe's training values and the README text about its use."""
    is_task, is_hooks = scaffold.folder == "task", scaffold.group == HOOK_GROUP
    needs = "`kdplug-presets`" if is_task else "`kdplug-tasks` and `kdplug-presets`"
    after = [
        *(
            [f"`kdplug run recipe.yaml` runs this in less than a minute. It needs {needs}."]
            if scaffold.has_recipe
            else []
        ),
        *([f"`kdplug plugins show {config_name}` shows its documentation and settings."] if not is_hooks else []),
    ]
    how = f"Once installed, any config or recipe can use the {scaffold.noun} by name:"
    if is_hooks and scaffold.is_class:
        how = "Once installed, its hooks may change the runs of a config that names the package:"
    elif is_hooks:
        how = "Once installed, its hooks are called in every run of any recipe:"
    return {
        "epochs": "60" if is_task else "5",
        "lr": "2.0e-2" if is_task else "5.0e-3",
        "how_to_use": how,
        "after": "\n".join(after),
    }


def _with_range(name: str) -> str:
    """Return the requirement; for kdplug, with the range of compatible versions."""
    if name != "kdplug":
        return name
    major, minor = (int(part) for part in kdplug.__version__.split(".")[:2])
    return f"kdplug>={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _template(path: str) -> str:
    return (files("kdplug.cli") / "templates" / f"{path}.tmpl").read_text(encoding="utf-8")


def _filled(path: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match[1]], _template(path))


def new_plugin(
    name: Annotated[str, typer.Argument(help="Distribution name, such as kdplug-myloss.")],
    *,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="K",
            help="Kind of plugin: loss, projection, weight-scheduler, temperature-scheduler, teacher-combiner, "
            "teacher-update, teacher, layer-map, task, cache-codec, student-transform, evaluator or hooks.",
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--form",
            "--on",
            metavar="F",
            help="Form of the plugin. For a loss: logits (default), features, layers, features-and-logits, parameters (trained) "
            "or bank (memory). For a projection: sequences (default) or maps. For a temperature scheduler: function (default) or "
            "parameters. For a task: whole (default) or wrapped (changes another task). For hooks: observing (default) or acting.",
        ),
    ] = None,
    license_name: Annotated[
        str,
        typer.Option("--license", metavar="L", help="License of the project: Apache-2.0, MIT, BSD-3-Clause or none."),
    ] = "Apache-2.0",
    folder: Annotated[Path, typer.Option("--dir", metavar="D", help="Parent folder of the new project.")] = Path(),
) -> None:
    """Create a plugin project with entry point, typed module, tests, README, recipe and license."""
    with report_errors():
        scaffold = read_scaffold(kind, form)
        chosen = read_license(license_name)
        module, entry = names_of(name)
        _check_free(name, module)
        notice, config_name = _clash(scaffold, name, entry)
        project = make_project(name, scaffold, chosen, config_name)
        written = write_project(project, folder)
    place = printable(str(written))
    typer.echo(f"Created {place}: {', '.join(project.texts)}")
    if notice:
        typer.echo(f"Note: {notice}")
    typer.echo(f"\nNext:\n  cd {place}\n  pip install -e '.[test]'\n  pytest")
    if scaffold.has_recipe:
        typer.echo("  kdplug run recipe.yaml")


def write_project(project: Project, folder: Path) -> Path:
    """Write the files to a new folder in ``folder``, named like the distribution, and return its path.

    Raises: ``ConfigError`` if it exists or cannot be created.
    """
    place = folder / project.dist
    try:
        place.mkdir(parents=True)
        for path, text in project.texts.items():
            (place / path).parent.mkdir(exist_ok=True)
            (place / path).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        # FileExistsError is also raised if a parent of place is a file.
        if isinstance(error, FileExistsError) and os.path.lexists(place):
            raise ConfigError(f"{place} already exists. Choose another name or another --dir", field="NAME") from error
        raise ConfigError(f"cannot write to {place}: {error.strerror}", field="--dir") from error
    return place


def _check_free(dist: str, module: str) -> None:
    """Raise ``ConfigError`` if a module of that name can already be imported."""
    found = find_spec(module)
    if found is not None:
        again = f", or uninstall the existing module: pip uninstall {dist}" if installed_version(dist) else ""
        raise ConfigError(
            f"the project's module {module!r} already exists: {found.origin or 'a folder on the path'}. "
            f"Choose another name{again}",
            field="NAME",
        )


def _clash(scaffold: Scaffold, dist: str, entry: str) -> tuple[str | None, str | None]:
    """Return a note on other entries of the same name, and the name that configs must use because of them."""
    if scaffold.group == HOOK_GROUP:
        return None, None
    registry = REGISTRIES[next(kind.plural for kind in KINDS.values() if kind.group == scaffold.group)]
    own = f"{dist}:{entry}"
    try:
        others = [registry.entry(entry, quiet=True)]
    except AmbiguousEntryError:
        others = [found for found in registry.entries() if found.name == entry]
    except NotInstalledError as error:
        return f"{error}. To use your entry, write {own} in configs.", own
    except EntryError:
        return None, None
    others = [found for found in others if fold_distribution(found.dist) != fold_distribution(dist)]
    if not others:
        return None, None
    owners = ", ".join(found.qualified for found in others)
    return f"{entry!r} is already the name of {owners}. To use your entry, write {own} in configs.", own
