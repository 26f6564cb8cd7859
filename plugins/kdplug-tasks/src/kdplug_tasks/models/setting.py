"""``teacher:`` and ``student:`` of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

import kdplug
from kdplug_tasks.setting import Settings, or_text

Path = Annotated[str, Field(min_length=1)]


class TeacherSettings(Settings):
    """A folder or hub name, or ``config`` for a model from scratch: ``{model_type: bert, hidden_size: 128, …}``.

    ``train`` fits it on the training data first, for ``epochs`` passes with AdamW, the learning rate ``lr`` falling linearly
    to 0; one from scratch has to be. A text stands for ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Path | None = None
    config: dict[str, Any] | None = None
    train: bool = False
    epochs: Annotated[int, Field(ge=1)] = 3
    lr: Annotated[float, Field(gt=0)] = 5e-5
    batch_size: Annotated[int, Field(ge=1)] = 16

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise kdplug.ConfigError("give exactly one of path and config")
        if self.config is not None and not self.train:
            raise kdplug.ConfigError("a teacher from scratch knows nothing: write train: true")
        if self.config is not None and "model_type" not in self.config:
            raise kdplug.ConfigError("config needs a model_type: bert, gpt2, vit, …")
        if not self.train and (idle := list(self._idle())):
            raise kdplug.ConfigError(f"{', '.join(idle)} has no effect without train: true")
        return self

    def _idle(self) -> Iterator[str]:
        """What is set for a training that there is none of; a default may stand, since a config that is resolved writes it."""
        for name in ("batch_size", "epochs", "lr"):
            if getattr(self, name) != type(self).model_fields[name].default:
                yield name


class FromTeacher(Settings):
    """What a student takes from the teacher before it is trained.

    ``layers`` are the teacher's layers, counted from 0, that become the student's, in this order; with them go all other
    weights, the head included. ``embeddings`` are ``copied``, and cut to the student's width where it is narrower; ``frozen``
    ones are copied and stay as they are; ``fresh`` ones are not taken.
    """

    layers: list[Annotated[int, Field(ge=0)]] = []
    embeddings: Literal["copied", "frozen", "fresh"] = "copied"

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.layers and self.embeddings == "fresh":
            raise kdplug.ConfigError("takes nothing: give layers, or take the embeddings")
        return self


class StudentSettings(Settings):
    """A folder or hub name, a ``config``, or layers ``from_teacher``.

    A ``config`` with a ``model_type`` is a model of its own; without one it holds what differs from the teacher's config.
    ``from_teacher`` goes with such changes too. A text stands for ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Path | None = None
    config: dict[str, Any] | None = None
    from_teacher: FromTeacher | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and self.config is None and self.from_teacher is None:
            raise kdplug.ConfigError("give path, config or from_teacher")
        if self.path is not None and (self.config is not None or self.from_teacher is not None):
            raise kdplug.ConfigError("a student with a path is whole: config and from_teacher do not go with it")
        if self.from_teacher is not None and "model_type" in (self.config or {}):
            raise kdplug.ConfigError(
                "a student from the teacher is of the teacher's kind: leave model_type out of its config"
            )
        return self
