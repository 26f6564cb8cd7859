"""Stages of a recipe: distillations in a row, each with its own student, teacher and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from kdplug.config.distillation import DistillationConfig
from kdplug.config.key import keys_replaced_by, keys_that_need, not_identity
from kdplug.config.model import ConfigModel, FrozenDict, Text, freeze, is_none, thaw
from kdplug.config.training import LoopConfig
from kdplug.config.words import shown
from kdplug.errors import ConfigError, KdplugError, did_you_mean

if TYPE_CHECKING:
    from kdplug.config.recipe import Recipe

FRESH = "fresh"
"""The ``student`` of a stage that starts from a new student."""

STAGE = "stage"
"""The key of a reference to another stage, as in ``{stage: general}``."""

STUDENT = "student"
"""The setting of a task that describes its student."""

_BASE = "base"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "must be a name of at most 64 letters, digits, '-' and '_' that starts with a letter or digit, since it names a "
            f"folder, got {shown(name)}"
        )
    return name


def _is_reference(data: object) -> bool:
    return isinstance(data, Mapping) and STAGE in data


def _checked_reference(data: Mapping[str, Any]) -> FrozenDict:
    if set(data) != {STAGE} or not isinstance(data[STAGE], str):
        raise ConfigError(f"must be {{stage: NAME}} with nothing else, got {shown(data)}")
    return FrozenDict(data)


def _read_student(data: object) -> str | FrozenDict | None:
    if data is None or data == FRESH:
        return data
    if _is_reference(data):
        return _checked_reference(data)  # type: ignore[arg-type]
    if not isinstance(data, Mapping) or not data:
        near = did_you_mean(data, [FRESH]) if isinstance(data, str) else ""
        raise ConfigError(
            "must be fresh, {stage: NAME}, or a mapping that replaces the setting 'student' of the task, got "
            f"{shown(data)}.{near}".rstrip(".")
        )
    found: FrozenDict = freeze(data)
    return found


def _read_teacher(data: object) -> FrozenDict | None:
    if is_none(data):
        return None
    if not _is_reference(data):
        raise ConfigError(
            "must be {stage: NAME}, whose student then teaches, or left out for the teacher of the task, got "
            f"{shown(data)}"
        )
    return _checked_reference(data)  # type: ignore[arg-type]


def _read_keys(data: object) -> FrozenDict:
    if data is None:
        return FrozenDict()
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be a mapping, got {shown(data)}")
    found: FrozenDict = freeze(data)
    return found


def _distinct(globs: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := [glob for place, glob in enumerate(globs) if glob in globs[:place]]:
        raise ConfigError(f"contains {repeated[0]!r} more than once")
    return globs


_REFERENCE: dict[str, Any] = {
    "type": "object",
    "properties": {STAGE: {"type": "string", "description": "name of an earlier stage"}},
    "required": [STAGE],
    "additionalProperties": False,
}
_Student = Annotated[
    str | FrozenDict | None,
    PlainValidator(_read_student),
    PlainSerializer(thaw),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "null"},
                {"const": FRESH},
                {"type": "object", "minProperties": 1, "if": {"required": [STAGE]}, "then": _REFERENCE},
            ]
        }
    ),
]
_Teacher = Annotated[
    FrozenDict | None,
    PlainValidator(_read_teacher),
    PlainSerializer(thaw),
    WithJsonSchema({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[nN][oO][nN][eE]$"}, _REFERENCE]}),
]
_Keys = Annotated[
    FrozenDict, PlainValidator(_read_keys), PlainSerializer(thaw), WithJsonSchema({"type": ["object", "null"]})
]


class StageConfig(ConfigModel):
    """One stage. What it leaves out is the recipe's own.

    Raises: ``ConfigError`` with the path of each wrong value.
    """

    name: Annotated[Text, AfterValidator(_name)] = Field(
        description="name of the stage, by which others refer to it; also names its folder",
        json_schema_extra={"pattern": f"^{_NAME.pattern}$"},
    )
    student: _Student = Field(
        default=None,
        description="student at the start of the stage: `fresh`, a new one; `{stage: NAME}`, the one of an earlier stage; or a "
        "mapping that replaces the task's setting `student`, for a student of another size. By default the one of the last "
        "stage with the same student settings, or else a new one",
    )
    teacher: _Teacher = Field(
        default=None,
        description="`{stage: NAME}`: the student of an earlier stage teaches this one. None means the teacher of the task",
    )
    freeze: Annotated[tuple[Text, ...], AfterValidator(_distinct)] = Field(
        default=(),
        description="names of student parameters that this stage does not train, or patterns with `*`, such as "
        "`embeddings.*`; one that matches no parameter is an error",
    )
    distillation: _Keys = Field(
        default=FrozenDict(),
        description="keys of `distillation` that differ in this stage. `terms` replaces the keys of the kd loss, and they "
        "replace `terms`",
    )
    training: _Keys = Field(
        default=FrozenDict(), description="keys of `training` that differ in this stage, such as `num_steps` and `lr`"
    )

    @property
    def starts_from(self) -> str | None:
        """The stage that ``student`` names."""
        return self.student[STAGE] if _is_reference(self.student) else None  # type: ignore[index]

    @property
    def taught_by(self) -> str | None:
        """The stage that ``teacher`` names."""
        return None if self.teacher is None else self.teacher[STAGE]

    @property
    def student_settings(self) -> FrozenDict | None:
        """The student settings that replace those of the task; ``None`` for the task's own."""
        return self.student if isinstance(self.student, FrozenDict) and not _is_reference(self.student) else None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage with everything that it inherits.

    ``recipe`` is that of the stage alone. ``start`` is the stage whose student it starts from, ``None`` for a new one, and
    ``teacher`` the stage whose student teaches, ``None`` for the teacher of the task. ``own_keys`` are the keys of
    ``distillation`` that it does not inherit.
    """

    place: int
    name: str
    recipe: Recipe
    start: str | None
    teacher: str | None
    freeze: tuple[str, ...]
    has_own_student: bool
    own_keys: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Return everything in the recipe that the result of the stage depends on, as plain data by key."""
        distillation, training = self.recipe.distillation.to_dict(), self.recipe.training.to_dict()
        free = not_identity(type(self.recipe.training))
        cached = (*keys_that_need(LoopConfig, CACHING), *free)
        return {
            "student": {"from": self.start, "settings": _student_of(self.recipe)},
            "teacher": self.teacher,
            "freeze": list(self.freeze),
            "distillation": {key: value for key, value in distillation.items() if key != CACHING},
            "training": {key: value for key, value in training.items() if key not in cached},
        }


CACHING = "is_caching_logits"
"""The key that all stages share."""
_LENGTHS = ("num_epochs", "num_steps")
_PRECISIONS = ("precision", "fp16")


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe in order, each with what it inherits; none for a recipe without stages.

    Raises: ``ConfigError`` with the path of a repeated name, of a reference to a stage that does not come earlier or has
    another student, of a stage without effect, and of each wrong value.
    """
    configs = recipe.stages
    if configs:
        _check_alone(recipe)
    _check_names(configs)
    found: list[Stage] = []
    for place, config in enumerate(configs):
        try:
            _check_references(configs, place)
            merged = _merged(recipe, config)
            found.append(
                Stage(
                    place=place,
                    name=config.name,
                    recipe=merged,
                    start=_start(config, merged, found),
                    teacher=config.taught_by,
                    freeze=config.freeze,
                    has_own_student=_student_of(merged) != _student_of(recipe),
                    own_keys=frozenset(config.distillation),
                )
            )
        except KdplugError as error:
            raise error.at("stages", place) from error.__cause__
    _check_used(found)
    return tuple(found)


def _check_alone(recipe: Recipe) -> None:
    """Check that the recipe has nothing that works for a single distillation only."""
    others = {
        "student.transforms": bool(recipe.student.transforms),
        "teacher": not recipe.has_task_teacher,
        "controls": "shuffled" in recipe.controls,
        "distillation.teacher_update": recipe.distillation.teacher_update is not None,
    }
    for key, is_given in others.items():
        if is_given:
            what = {"teacher": "a teacher other than the task's", "controls": "the control shuffled"}.get(key, key)
            raise ConfigError(f"{what} cannot be combined with stages. Remove it, or remove stages").at(*key.split("."))


def _check_names(configs: Sequence[StageConfig]) -> None:
    seen: dict[str, int] = {}
    for place, config in enumerate(configs):
        folded = config.name.casefold()  # folders may ignore case
        if folded in seen:
            raise ConfigError(f"{config.name!r} is already the name of stages.{seen[folded]}. Choose another name").at(
                "stages", place, "name"
            )
        seen[folded] = place


def _check_references(configs: Sequence[StageConfig], place: int) -> None:
    names = [config.name for config in configs]
    for key, name in _references(configs[place]):
        if name not in names:
            raise ConfigError(
                f"there is no stage {name!r}.{did_you_mean(name, names)} The stages are {', '.join(names)}"
            ).at(key, STAGE)
        if names.index(name) >= place:
            cycle = _cycle(configs, names, place, [names[place]])
            raise ConfigError(
                f"the stages depend on each other in a cycle: {' -> '.join(cycle)}. A stage can only use earlier ones"
                if cycle
                else f"stage {name!r} comes later, and stages run in order. Move it before {names[place]!r}"
            ).at(key, STAGE)


def _references(config: StageConfig) -> Iterator[tuple[str, str]]:
    if config.starts_from is not None:
        yield "student", config.starts_from
    if config.taught_by is not None:
        yield "teacher", config.taught_by


def _cycle(configs: Sequence[StageConfig], names: list[str], place: int, path: list[str]) -> list[str]:
    """Return the names of stages that lead from the first one in ``path`` back to it; empty if there are none."""
    for _, name in _references(configs[place]):
        if name == path[0]:
            return [*path, name]
        if name in names and name not in path:
            found = _cycle(configs, names, names.index(name), [*path, name])
            if found:
                return found
    return []


def _start(config: StageConfig, merged: Recipe, earlier: Sequence[Stage]) -> str | None:
    """Return the stage whose student a stage starts from; ``None`` for a new student."""
    if config.student == FRESH:
        return None
    own = _student_of(merged)
    matching = [stage.name for stage in earlier if _student_of(stage.recipe) == own]
    if config.starts_from is None:
        return matching[-1] if matching else None
    if config.starts_from not in matching:
        other = next(stage for stage in earlier if stage.name == config.starts_from)
        raise ConfigError(
            f"the student of stage {other.name!r} has other settings ({shown(_student_of(other.recipe))}) than that of this "
            f"stage ({shown(own)}), so its weights do not fit. To let it teach this stage, write teacher: {{stage: "
            f"{other.name}}} and student: fresh"
        ).at("student")
    return config.starts_from


def _check_used(stages: Sequence[Stage]) -> None:
    """Check that each stage has an effect on the last one, whose student is that of the recipe."""
    if not stages:
        return
    last = stages[-1]
    if last.has_own_student:
        raise ConfigError(
            "the last stage trains the student of the recipe, so it cannot have its own student settings. Write them in "
            "task, or add a stage with 'student: fresh'"
        ).at("stages", last.place, "student")
    used = {last.name}
    for stage in reversed(stages):
        if stage.name not in used:
            raise ConfigError(
                f"stage {stage.name!r} has no effect: no later stage starts from its student or learns from it. Remove it, "
                f"or name it in a later stage: student: {{stage: {stage.name}}} or teacher: {{stage: {stage.name}}}"
            ).at("stages", stage.place)
        used |= {name for name in (stage.start, stage.teacher) if name is not None}


def _merged(recipe: Recipe, config: StageConfig) -> Recipe:
    """Return the recipe of one stage alone, without ``stages``."""
    data = recipe.model_dump(mode="json", exclude_unset=True, exclude={"stages"})
    data["distillation"] = _with_distillation(data["distillation"], thaw(config.distillation))
    data["training"] = _with_training(data["training"], thaw(config.training))
    if config.taught_by is not None:  # an assistant's outputs differ by seed, so they are not stored
        data["distillation"][CACHING] = False
        data["training"].update(dict.fromkeys(keys_that_need(LoopConfig, CACHING)))
    if config.student_settings is not None:
        task = data["task"] if isinstance(data["task"], dict) else {"name": data["task"]}
        data["task"] = _with_student(task, thaw(config.student_settings))
    return type(recipe).model_validate(data)


def _with_distillation(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    _refuse_shared(own, (CACHING,), "distillation")
    of_kd_loss = keys_replaced_by(DistillationConfig, "terms")
    replaced = () if is_none(own.get("terms")) else of_kd_loss
    replaced += ("terms",) if any(key in own for key in of_kd_loss) else ()
    return {**{key: value for key, value in base.items() if key not in replaced}, **own}


def _with_training(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    _refuse_shared(own, keys_that_need(LoopConfig, CACHING), "training")
    replaced: tuple[str, ...] = ()
    for group in (_LENGTHS, _PRECISIONS):
        if any(own.get(key) is not None for key in group):
            replaced += group
    return {**{key: value for key, value in base.items() if key not in replaced}, **own}


def _refuse_shared(own: Mapping[str, Any], keys: Sequence[str], section: str) -> None:
    for key in keys:
        if key in own:
            raise ConfigError(
                f"holds for all stages, which share one teacher cache. Write it in {section} of the recipe"
            ).at(section, key)


def _with_student(task: dict[str, Any], student: Any) -> dict[str, Any]:
    """Return a task with other student settings, which belong to the task that it wraps, if there is one."""
    if STUDENT not in task and isinstance(task.get(_BASE), (dict, str)):
        base = task[_BASE] if isinstance(task[_BASE], dict) else {"name": task[_BASE]}
        return {**task, _BASE: _with_student(base, student)}
    return {**task, STUDENT: student}


def _student_of(recipe: Recipe) -> Any:
    """Return the student settings of a recipe's task as plain data; ``None`` if the task has its default student."""
    task: Any = thaw(recipe.task.settings)
    while isinstance(task, dict) and STUDENT not in task and _BASE in task:
        task = task[_BASE]
    return task.get(STUDENT) if isinstance(task, dict) else None
