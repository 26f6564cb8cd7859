"""``kdplug new``: write a starter recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from kdplug.cli.terminal import report_errors
from kdplug.errors import ConfigError, KdplugError, RunError, SignatureError, did_you_mean, nearest

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from kdplug.config.model import ConfigModel
    from kdplug.contracts.task import RecipeGuess
    from kdplug.host.entry import Entry

SCHEMA = "kdplug.schema.json"

_CHOSEN: Mapping[str, Mapping[str, Any]] = {
    "distillation": {"kd_loss_type": {"name": "ce", "t2": True}, "hard_label_weight": 1.0},
    "training": {"lr_schedule": "linear", "num_epochs": 10},
}
"""Values of a new recipe that differ from the defaults; a task may override them."""

_SEEDS = 3
"""Students of a new recipe for each arm: a verdict needs 3 seeds."""

_EXAMPLES = {
    "terms": "for example [{loss: kl, weight: 0.9}, {loss: [dist, 1, 1], temperature: 1}], without the keys of the kd loss",
    "intermediate_matches": "for example [{layer_T: 2, layer_S: 1, feature: hidden, loss: hidden_mse, proj: linear}]",
}


def new(
    recipe: Annotated[Path, typer.Argument(help="Recipe file to write (.yaml or .yml).")],
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Task name, such as digits.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DATA", help="Data file or folder from which to infer the task and its settings."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="Folder or hub name of the teacher. Requires --from."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented starter recipe for a task or for your data, and a JSON Schema that lets editors validate it."""
    with report_errors():
        from kdplug.config.recipe import Recipe
        from kdplug.config.schema.build import schema_of
        from kdplug.engine.observe.activity import busy
        from kdplug.report.file import replacing, write_json

        _check_free(recipe, force=force)
        with busy("Reading the data" if data is not None else "Importing the task", shown=True):
            entry, guess = _task_of(recipe, task, data, teacher)
        text, missing = recipe_text(recipe.name, task or entry.name, entry, guess)
        Recipe.from_yaml(text)
        schema = schema_of("recipe", load=lambda one: one is entry)
        try:
            with replacing(recipe) as temporary:
                temporary.write_text(text, encoding="utf-8")
            write_json(recipe.with_name(SCHEMA), schema.data)
        except OSError as error:
            raise RunError(f"cannot write {str(recipe)!r}: {error.strerror}") from error
    if guess is not None:
        typer.echo(f"Inferred from {data}, please check:")
        for reason in (f"task {entry.name}", *guess.reasons):
            typer.echo(f"  {reason}")
    typer.echo(
        f"Wrote {recipe} and {recipe.with_name(SCHEMA)} (which covers all plugin names and the settings of this task)."
    )
    typer.echo(f"To add the settings of every plugin:  kdplug schema > {recipe.with_name(SCHEMA)}")
    for name in missing:
        typer.echo(f"Fill in task.{name}")
    typer.echo(f"Preview it:  kdplug plan {recipe}")
    typer.echo(f"Run it:  kdplug run {recipe}")


def _task_of(
    recipe: Path, task: str | None, data: Path | None, teacher: str | None
) -> tuple[Entry, RecipeGuess | None]:
    """Return the task that the options name or that can read ``data``, and the settings inferred from ``data``."""
    from kdplug.host.registry import tasks

    if data is None:
        if task is None:
            raise ConfigError(f"pass --task NAME, or --from DATA to infer the task.{_choices(recipe)}")
        if teacher is not None:
            raise ConfigError("--teacher has no effect without --from")
    try:
        named = tasks.entry(task) if task is not None else None
    except KdplugError as error:
        raise error.at("--task") from None
    if data is None:
        assert named is not None
        return named, None
    found = {one: guess for one in ([named] if named else _entries()) if (guess := _guess(one, data, teacher))}
    if len(found) == 1:
        return found.popitem()
    if named is not None:
        raise ConfigError(f"{named.qualified} cannot infer its settings from {str(data)!r}. Leave out --from").at(
            "--from"
        )
    if not found:
        raise ConfigError(f"no installed task recognizes {str(data)!r}. Name a task with --task").at("--from")
    names = ", ".join(sorted(one.name for one in found))
    raise ConfigError(f"{str(data)!r} matches several tasks: {names}. Choose one with --task").at("--from")


def _entries() -> Iterator[Entry]:
    """Yield the installed tasks that can be imported."""
    from kdplug.host.registry import tasks

    for entry in tasks.entries():
        try:
            entry.load()
        except KdplugError as error:
            typer.echo(f"skipping {entry.qualified}: {error}", err=True)
        else:
            yield entry


def _guess(entry: Entry, data: Path, teacher: str | None) -> RecipeGuess | None:
    from kdplug.contracts.task import NEW_RECIPE

    guess = getattr(entry.load(), NEW_RECIPE, {}).get("guess")
    return guess(data, teacher) if guess is not None else None


def _choices(recipe: Path) -> str:
    """Name the task that the file is probably for, and all tasks."""
    from kdplug.host.registry import tasks

    names = sorted({entry.name for entry in tasks.entries()})
    near = nearest(recipe.stem, names)
    meant = f" Did you mean kdplug new {recipe.with_suffix('.yaml')} --task {near}?" if near else ""
    return f"{meant} Tasks: {', '.join(names) or 'none is installed'}"


def _check_free(recipe: Path, *, force: bool) -> None:
    if recipe.suffix.lower() not in (".yaml", ".yml"):
        named = f"the name of a new recipe must end in .yaml or .yml, got {str(recipe)!r}."
        raise ConfigError(f"{named}{_choices(recipe)}")
    if recipe.exists() and not force:
        raise ConfigError(f"{str(recipe)!r} already exists. Overwrite it with --force")


def recipe_text(file: str, name: str, task: Entry, guess: RecipeGuess | None = None) -> tuple[str, list[str]]:
    """Return a recipe that names ``task`` as ``name``, and the settings of the task to fill in. Imports the task.

    Settings in ``guess`` need not be filled in.
    """
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.recipe import Recipe, RecipeTraining

    settings, missing = _task_settings(task, guess)
    models: dict[str, type[ConfigModel]] = {"distillation": DistillationConfig, "training": RecipeTraining}
    blocks = {key: list(_keys(model, _chosen(task, key, model.model_fields))) for key, model in models.items()}
    blocks["task"] = [f"  name: {_yaml(name)}", *settings]
    lines = [f"# yaml-language-server: $schema=./{SCHEMA}", f"# Run it:  kdplug run {file}"]
    lines += [f"# Inferred: {_comment(reason)}" for reason in (guess.reasons if guess else ())]
    for key, field in Recipe.model_fields.items():
        lines += ["", f"# {_comment(field.description or '')}"]
        if key in blocks:
            lines += [f"{key}:", *blocks[key]]
        else:
            chosen = {"output_dir": f"runs/{task.name}", "seeds": _SEEDS}
            lines.append(f"{key}: {_yaml(chosen[key] if key in chosen else _default(field))}")
    return "\n".join(lines) + "\n", missing


def _chosen(task: Entry, block: str, keys: Iterable[str]) -> dict[str, Any]:
    """Return the values that replace the defaults in a block of the recipe, which has these ``keys``.

    Raises: ``SignatureError`` if the task names a key that the block does not have.
    """
    from kdplug.contracts.task import NEW_RECIPE

    own = getattr(task.load(), NEW_RECIPE, {}).get(block, {})
    for key in own:
        if key not in keys:
            raise SignatureError(
                f"{task.qualified} sets {block}.{key} in new recipes, but there is no such key.{did_you_mean(key, keys)}"
            )
    return {**_CHOSEN.get(block, {}), **own}


def _keys(model: type[ConfigModel], chosen: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a model's block: each key below a comment with its description."""
    for key, field in model.model_fields.items():
        choices = ", ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
        yield f"  # {_comment(field.description or '')}{f' ({choices})' if choices else ''}"
        if key in _EXAMPLES:
            yield f"  # {_EXAMPLES[key]}"
        yield f"  {key}: {_yaml(chosen.get(key, _default(field)))}"


def _task_settings(task: Entry, guess: RecipeGuess | None) -> tuple[list[str], list[str]]:
    """Return a task's settings as recipe lines, and the names of those to fill in."""
    from kdplug.config.schema.entry import entry_schema

    found = entry_schema(task, load=True)
    if found.error:
        _ = task.settings  # raises the error
    schema = found.settings or {}
    properties = schema.get("properties", {})
    inferred = guess.settings if guess else {}
    values = {**_chosen(task, "task", list(properties)), **inferred}
    lines, missing = [], []
    for name, setting in properties.items():
        doc = _comment(f"{setting.get('description', '')} {_bounds(setting)}")
        lines += [f"  # {doc}"] if doc else []
        known = {"default": setting["default"]} if "default" in setting else {}
        value = values.get(name, known.get("default"))
        line = f"  {name}: {_yaml(value)}" if name in values or known else f"  {name}:"
        if name in schema.get("required", []) and name not in inferred:
            missing.append(name)
            line += "  # fill in"
        if name in values or known or name in missing:
            lines.append(line)
    return lines, missing


def _bounds(setting: Mapping[str, Any]) -> str:
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    found = ", ".join(f"{sign} {_number(setting[key])}" for key, sign in signs if key in setting)
    return f"({found})" if found else ""


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _comment(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def _default(field: FieldInfo) -> Any:
    """Return the default of a field as it is written in a config."""
    from pydantic import BaseModel

    from kdplug.config.key import written_default

    value = field.get_default()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [] if value == () else written_default(field)


def _yaml(value: Any) -> str:
    """Format a value on one line as JSON, which is valid YAML; quotes are omitted where YAML does not need them."""
    import json
    import re

    from kdplug.config.text import yaml_value

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(part)}" for key, part in value.items()) + "}"
    plain = isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value, re.ASCII) and yaml_value(value) == value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)
