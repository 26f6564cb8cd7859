"""Compute the content of ``kdplug-run.json``: all data needed to identify and repeat a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig
from kdplug.config.key import places
from kdplug.config.match import ProjectionSpec
from kdplug.config.model import ConfigModel, resolve, thaw, write_component
from kdplug.config.recipe import Recipe
from kdplug.config.teacher import WORDS
from kdplug.config.term import NO_SCHEDULER
from kdplug.errors import KdplugError
from kdplug.host.active import active
from kdplug.host.manifest import environment_record
from kdplug.host.registry import REGISTRIES, teachers
from kdplug.host.spec import ComponentSpec


def used_entries(config: DistillationConfig) -> list[dict[str, Any]]:
    """Return the path, qualified name and all settings of each entry that a resolved config uses."""
    return [
        {
            "path": path,
            "name": spec.name,
            **({"args": thaw(spec.args)} if spec.args else {}),
            "settings": thaw(spec.settings),
        }
        for path, spec in _named(config)
        if spec is not None and spec != NO_SCHEDULER
    ]


def _named(config: DistillationConfig) -> Iterator[tuple[str, ComponentSpec | None]]:
    for key, spec in _components(config):
        unused = key == "kd_loss_type" and not config.kd_loss_weight
        if not unused and (key != "teacher_combiner" or spec != DEFAULT_COMBINER):
            yield key, spec
    for place, term in enumerate(config.terms or ()):
        yield from _components(term, "terms", place)
    for place, layer_map in enumerate(config.layer_map):  # maps that are resolved on the first batch
        yield from _components(layer_map, *config.path_of_map(place))


def _components(model: ConfigModel, *path: object) -> Iterator[tuple[str, ComponentSpec | None]]:
    for key in places(type(model)):
        spec = getattr(model, key)
        yield ".".join(map(str, (*path, key))), spec.component if isinstance(spec, ProjectionSpec) else spec


RECORD = "kdplug-run.json"
"""The name of the record file."""

CODEC = "teacher_cache_codec"

EVALUATORS = "evaluators"
"""The key whose entries do not affect training."""


def record_transforms(recipe: Recipe) -> list[Any]:
    """Return the student transforms of a recipe with qualified names and every setting."""
    return _listed(recipe.student.transforms, "student_transforms", "student.transforms")


def record_evaluators(recipe: Recipe) -> list[Any]:
    """Return the evaluators of a recipe with qualified names and every setting."""
    return _listed(recipe.evaluators, "evaluators", EVALUATORS)


def _listed(specs: Iterable[ComponentSpec], plural: str, field: str) -> list[Any]:
    """Return a list of components with qualified names and every setting, each as a mapping."""
    found = []
    for place, spec in enumerate(specs):
        try:
            found.append(REGISTRIES[plural].build(spec).qualified_spec())
        except KdplugError as error:
            raise error.at(field, place) from error.__cause__
    return found


def run_record(recipe: Recipe, task: Mapping[str, Any], distillation: DistillationConfig) -> dict[str, Any]:
    """Return versions, plugins, used entries, and the recipe with all qualified names of components and all settings.

    ``task`` and ``distillation`` are those of the recipe in resolved form. ``output_dir``, which has no effect on
    results, is omitted. ``config_sha256`` is the hash of the recipe in this form. Hook plugins are imported, so that an
    error names the failing one.
    """
    active().load_hooks()
    training = resolved_training(recipe)
    resolved = {**recipe.to_dict(), "task": dict(task), "distillation": distillation.to_dict(), "training": training}
    external = resolved_teacher(recipe)
    if external is not None:
        resolved["teacher"] = external
    resolved |= {"student": {"transforms": record_transforms(recipe)}, EVALUATORS: record_evaluators(recipe)}
    del resolved["output_dir"]
    return {
        **environment_record(),
        "entries": [
            *_tasks("task", task),
            *_under("distillation", used_entries(distillation)),
            *([] if external is None else [_entry("teacher", external)]),
            *(
                [_entry(f"training.{CODEC}", training[CODEC])]
                if recipe.training.teacher_cache_codec is not None
                else []
            ),
            *(
                _entry(f"student.transforms.{place}", one)
                for place, one in enumerate(resolved["student"]["transforms"])
            ),
            *(_entry(f"{EVALUATORS}.{place}", one) for place, one in enumerate(resolved[EVALUATORS])),
        ],
        "seed": recipe.seed,
        "recipe": resolved,
        "config_sha256": config_hash(resolved),
    }


def resolved_training(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's ``training`` with the qualified name and every setting of its codec.

    Raises: ``KdplugError`` with the path of a codec that cannot be used.
    """
    training: dict[str, Any] = recipe.training.to_dict()
    if recipe.training.teacher_cache_codec is not None:
        try:
            training[CODEC] = write_component(resolve(recipe.training.teacher_cache_codec, "cache_codecs"))
        except KdplugError as error:
            raise error.at("training", CODEC) from error.__cause__
    return training


def resolved_teacher(recipe: Recipe) -> dict[str, Any] | None:
    """Return the recipe's external teacher with its qualified name and every setting; ``None`` if it has none.

    Raises: ``KdplugError`` with the path of one that cannot be used.
    """
    if recipe.teacher in (None, *WORDS):
        return None
    try:
        found: dict[str, Any] = teachers.build(recipe.teacher).qualified_spec()
    except KdplugError as error:
        raise error.at("teacher") from error.__cause__
    return found


def _entry(path: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": path, "name": spec["name"], "settings": {key: spec[key] for key in spec if key != "name"}}


def _tasks(path: str, spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a task, then the task that it wraps."""
    yield _entry(path, spec)
    base = spec.get("base")
    if isinstance(base, Mapping) and "name" in base:
        yield from _tasks(f"{path}.base", base)


def _under(field: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entry, "path": f"{field}.{entry['path']}"} for entry in entries]


def config_hash(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a recipe's data as JSON; the order of keys does not matter."""
    return sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()
