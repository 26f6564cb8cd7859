"""The ``teacher`` and ``student`` settings of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

import kdplug
from kdplug_tasks.setting import Count, Place, Settings, or_text


class TeacherSettings(Settings):
    """A folder or hub name, or ``config`` for a model from scratch: ``{model_type: bert, hidden_size: 128, …}``.

    A model from scratch must be trained first. A string means ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Place | None = None
    """A folder or hub name."""
    config: dict[str, Any] | None = None
    """Config of a model from scratch: ``{model_type: bert, hidden_size: 128, …}``."""
    train: bool = False
    """Train the teacher on the training data first. It is saved to ``teacher`` in the run's folder."""
    epochs: Count = 3
    """Passes over the data in the teacher's training."""
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Initial learning rate of AdamW, decaying linearly to 0."""
    batch_size: Count = 16
    """Batch size in the teacher's training."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise kdplug.ConfigError("set exactly one of path and config")
        if self.config is not None and not self.train:
            raise kdplug.ConfigError("a teacher from scratch is untrained: write train: true")
        if self.config is not None and "model_type" not in self.config:
            raise kdplug.ConfigError("config needs a model_type, such as bert, gpt2 or vit")
        if not self.train and (idle := list(self._idle())):
            verb = "has" if len(idle) == 1 else "have"
            raise kdplug.ConfigError(f"{', '.join(idle)} {verb} no effect without train: true")
        return self

    def _idle(self) -> Iterator[str]:
        """Yield training keys without effect; defaults are not counted, since a resolved config contains them."""
        for name in ("batch_size", "epochs", "lr"):
            if getattr(self, name) != type(self).model_fields[name].default:
                yield name


class FromTeacher(Settings):
    """Weights that the student copies from the teacher before training."""

    layers: list[Annotated[int, Field(ge=0)]] = []
    """Teacher layers, counted from 0, that become the student's, in this order. All other weights are copied too."""
    embeddings: Literal["copied", "frozen", "fresh"] = "copied"
    """``copied``, truncated to a narrower student's width; ``frozen``, copied and not trained; ``fresh``, not copied."""

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.layers and self.embeddings == "fresh":
            raise kdplug.ConfigError("copies nothing: set layers, or remove embeddings: fresh")
        return self


class StudentSettings(Settings):
    """A folder or hub name, a ``config``, or layers ``from_teacher``.

    With ``from_teacher``, ``config`` holds the values that differ from the teacher's. A string means ``{path: …}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Place | None = None
    """A folder or hub name."""
    config: dict[str, Any] | None = None
    """Config of a new model, with ``model_type``; or the values that differ from the teacher's config."""
    from_teacher: FromTeacher | None = None
    """Weights copied from the teacher before training."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and self.config is None and self.from_teacher is None:
            raise kdplug.ConfigError("set path, config or from_teacher")
        if self.path is not None and (self.config is not None or self.from_teacher is not None):
            raise kdplug.ConfigError(
                "config and from_teacher cannot be combined with path, which loads a student unchanged. Remove path, or set "
                "only path"
            )
        if self.from_teacher is not None and "model_type" in (self.config or {}):
            raise kdplug.ConfigError(
                "a student from_teacher has the teacher's model_type: remove model_type from its config"
            )
        return self
