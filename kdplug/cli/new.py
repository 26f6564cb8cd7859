"""``kdplug new``: write a starter recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from kdplug.cli.terminal import report_errors
from kdplug.errors import ConfigError, KdplugError, RunError, SignatureError, did_you_mean

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from kdplug.config.model import ConfigModel
    from kdplug.host.entry import Entry

SCHEMA = "kdplug.schema.json"

_CHOSEN: Mapping[str, Mapping[str, Any]] = {
    "distillation": {"hard_label_weight": 1.0},
    "training": {"lr_schedule": "linear", "num_epochs": 10},
}
"""Values of a new recipe that differ from the defaults; a task may override them."""

_MATCH = "for example [{layer_T: 2, layer_S: 1, feature: hidden, loss: hidden_mse, proj: linear}]"


def new(
    recipe: Annotated[Path, typer.Argument(help="Recipe file to write (.yaml or .yml).")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="Task name, such as digits.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented starter recipe for a task, and a JSON Schema that lets editors validate it."""
    with report_errors():
        from kdplug.config.recipe import Recipe
        from kdplug.config.schema.build import schema_of
        from kdplug.host.registry import tasks
        from kdplug.report.file import replacing, write_json

        _check_free(recipe, force=force)
        try:
            entry = tasks.entry(task)
        except KdplugError as error:
            raise error.at("--task") from None
        text, missing = recipe_text(recipe.name, task, entry)
        Recipe.from_yaml(text)
        schema = schema_of("recipe", load=lambda one: one is entry)
        try:
            with replacing(recipe) as temporary:
                temporary.write_text(text, encoding="utf-8")
            write_json(recipe.with_name(SCHEMA), schema.data)
        except OSError as error:
            raise RunError(f"cannot write {str(recipe)!r}: {error.strerror}") from error
    typer.echo(f"Wrote {recipe} and {recipe.with_name(SCHEMA)} (all names, and the settings of this task).")
    typer.echo(f"To add the settings of every plugin:  kdplug schema > {recipe.with_name(SCHEMA)}")
    for name in missing:
        typer.echo(f"Fill in task.{name}: it has no default")
    typer.echo(f"Run it:  kdplug run {recipe}")


def _check_free(recipe: Path, *, force: bool) -> None:
    if recipe.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"the name of a new recipe must end in .yaml or .yml, got {str(recipe)!r}")
    if recipe.exists() and not force:
        raise ConfigError(f"{str(recipe)!r} already exists. Overwrite it with --force")


def recipe_text(file: str, name: str, task: Entry) -> tuple[str, list[str]]:
    """Return a recipe that names ``task`` as ``name``, and the task's settings without a default. Imports the task."""
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.recipe import Recipe, RecipeTraining

    settings, missing = _task_settings(task)
    models: dict[str, type[ConfigModel]] = {"distillation": DistillationConfig, "training": RecipeTraining}
    blocks = {key: list(_keys(model, _chosen(task, key, model))) for key, model in models.items()}
    blocks["task"] = [f"  name: {_yaml(name)}", *settings]
    lines = [f"# yaml-language-server: $schema=./{SCHEMA}", f"# Run it:  kdplug run {file}"]
    for key, field in Recipe.model_fields.items():
        lines += ["", f"# {_comment(field.description or '')}"]
        if key in blocks:
            lines += [f"{key}:", *blocks[key]]
        else:
            lines.append(f"{key}: {_yaml(f'runs/{task.name}' if key == 'output_dir' else _default(field))}")
    return "\n".join(lines) + "\n", missing


def _chosen(task: Entry, block: str, model: type[ConfigModel]) -> dict[str, Any]:
    """Values that replace the defaults in a block of the recipe.

    Raises: ``SignatureError`` if the task names a key that the block does not have.
    """
    from kdplug.contracts.task import NEW_RECIPE

    own = getattr(task.load(), NEW_RECIPE, {}).get(block, {})
    for key in own:
        if key not in model.model_fields:
            raise SignatureError(
                f"{task.qualified} sets {block}.{key} in new recipes, but there is no such key."
                f"{did_you_mean(key, model.model_fields)}"
            )
    return {**_CHOSEN[block], **own}


def _keys(model: type[ConfigModel], chosen: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a model's block: each key below a comment with its description."""
    for key, field in model.model_fields.items():
        choices = ", ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
        yield f"  # {_comment(field.description or '')}{f' ({choices})' if choices else ''}"
        if key == "intermediate_matches":
            yield f"  # {_MATCH}"
        yield f"  {key}: {_yaml(chosen.get(key, _default(field)))}"


def _task_settings(task: Entry) -> tuple[list[str], list[str]]:
    """Return a task's settings as recipe lines, and the names of those without a default."""
    from kdplug.config.schema.entry import entry_schema

    found = entry_schema(task, load=True)
    if found.error:
        _ = task.settings  # raises the error
    schema = found.settings or {}
    lines, missing = [], []
    for name, setting in schema.get("properties", {}).items():
        doc = _comment(f"{setting.get('description', '')} {_bounds(setting)}")
        lines += [f"  # {doc}"] if doc else []
        if "default" in setting:
            lines.append(f"  {name}: {_yaml(setting['default'])}")
        elif name in schema.get("required", []):
            missing.append(name)
            lines.append(f"  {name}:")
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
    """Return the default of a field as a config writes it."""
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
