"""``teacher:`` and ``student:`` of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

import kdplug
from kdplug_tasks.setting import Count, Settings, or_text

Path = Annotated[str, Field(min_length=1)]


class TeacherSettings(Settings):
    """A folder or hub name, or ``config`` for a model from scratch: ``{model_type: bert, hidden_size: 128, …}``.

    One from scratch has to be fitted first. A text stands for ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Path | None = None
    """A folder or hub name."""
    config: dict[str, Any] | None = None
    """Of a model from scratch: ``{model_type: bert, hidden_size: 128, …}``."""
    train: bool = False
    """Whether it is fitted on the training data first."""
    epochs: Count = 3
    """Passes over the data while it is fitted."""
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Learning rate of AdamW at first, falling linearly to 0."""
    batch_size: Count = 16
    """Examples in a batch while it is fitted."""

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
    """What a student takes from the teacher before it is trained."""

    layers: list[Annotated[int, Field(ge=0)]] = []
    """Layers of the teacher, counted from 0, that become the student's, in this order. All other weights go with them."""
    embeddings: Literal["copied", "frozen", "fresh"] = "copied"
    """``copied``, cut to the student's width where it is narrower; ``frozen``, copied and not trained; ``fresh``, not taken."""

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.layers and self.embeddings == "fresh":
            raise kdplug.ConfigError("takes nothing: give layers, or take the embeddings")
        return self


class StudentSettings(Settings):
    """A folder or hub name, a ``config``, or layers ``from_teacher``.

    ``from_teacher`` goes with a ``config`` that holds what differs from the teacher's. A text stands for ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Path | None = None
    """A folder or hub name."""
    config: dict[str, Any] | None = None
    """Of a model of its own, with ``model_type``; or what differs from the teacher's config."""
    from_teacher: FromTeacher | None = None
    """What it takes from the teacher before it is trained."""

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
