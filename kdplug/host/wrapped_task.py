"""Tasks that change a part of another task, which a recipe names as their ``base``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from kdplug.contracts.task import Part, Task, TeacherFit
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import tasks
from kdplug.host.spec import ComponentSpec, parse_spec

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.data import Dataset

_METHODS = ("collate", "evaluate", "student_adaptor", "teacher_adaptor")

OPTIONAL_METHODS = (
    "answer",
    "check",
    "count",
    "expect",
    "predict",
    "prepare_batch",
    "review_data",
    "review_teacher",
    "save_student",
    "save_teacher",
    "start_student",
)
"""Methods of a task's optional protocols that a wrapped task has if its base has them.

``fingerprint`` is not among them: it would leave out the settings of the wrapping task, on which the teacher's outputs
may depend. Without it, a teacher cache is valid for equal settings of both tasks only.
"""

WRAPPED = {"$comment": "kdplug: a task"}
"""Mark of a setting that is a task, in JSON Schema."""

_DEPTH = 4


def _read_base(data: object) -> object:
    """Return a task itself, or its qualified spec as plain data.

    Raises: ``KdplugError`` with the path of the base's setting.
    """
    if isinstance(data, Task) and not isinstance(data, (str, Mapping)):
        return data
    spec = data if isinstance(data, ComponentSpec) else parse_spec(data)
    if _depth(data) > _DEPTH:
        raise ConfigError(f"tasks may wrap each other at most {_DEPTH} times")
    return tasks.build(spec).qualified_spec()


def _depth(data: object) -> int:
    return 1 + _depth(data.get("base")) if isinstance(data, Mapping) else 0


BaseTask = Annotated[Any, PlainValidator(_read_base), WithJsonSchema(WRAPPED)]
"""The setting ``base`` of a wrapped task: a name, or a mapping of name and settings."""


class WrappedTask:
    """A task that does what its base task does, except for the members that a subclass overrides.

    A subclass gets ``base`` as a keyword-only setting, next to its own settings, and calls ``super().__init__(base=base)``.
    ``self.base`` is then the base task. Optional methods, such as ``predict`` or ``start_student``, exist if the base has
    them; a subclass that overrides one calls ``self.base`` for what the base does. ``fingerprint`` is not inherited. ::

        class Blurred(kdplug.WrappedTask):
            def __init__(self, *, base: kdplug.BaseTask, sigma: float = 1.0) -> None:
                super().__init__(base=base)
                self.sigma = sigma

            def collate(self, examples):
                batch = self.base.collate(examples)
                return {**batch, "images": gaussian_blur(batch["images"], 3, self.sigma)}

    In a recipe: ``task: {name: blurred, sigma: 2, base: {name: digits, labels_per_class: 20}}``. Both models and all parts
    of the data then get blurred images.

    Raises: ``ConfigError`` if ``base`` is not a task; ``EntryError`` or ``SettingError`` if it cannot be built.
    """

    def __init__(self, *, base: BaseTask) -> None:
        self.base: Any = base if isinstance(base, Task) else _build(base)
        # Attributes, because Python 3.12 finds no members of __getattr__ when it checks for a protocol, and because a run
        # compares the code of adaptors.
        for name in _METHODS:
            if getattr(type(self), name) is getattr(WrappedTask, name):
                setattr(self, name, getattr(self.base, name))
        for name in OPTIONAL_METHODS:
            if not hasattr(type(self), name) and inspect.getattr_static(self.base, name, None) is not None:
                setattr(self, name, getattr(self.base, name))

    @property
    def metric(self) -> str:
        """Name of the base's main metric."""
        return self.base.metric  # type: ignore[no-any-return]

    def about(self) -> str:
        """Return the base's description."""
        return self.base.about()  # type: ignore[no-any-return]

    def build_teacher(self) -> Module:
        """Return the base's teacher."""
        return self.base.build_teacher()  # type: ignore[no-any-return]

    def teacher_fit(self) -> TeacherFit | None:
        """Return the base's training settings of the teacher."""
        return self.base.teacher_fit()  # type: ignore[no-any-return]

    def build_student(self) -> Module:
        """Return the base's student."""
        return self.base.build_student()  # type: ignore[no-any-return]

    def data(self, part: Part) -> Dataset[Any]:
        """Return one part of the base's data."""
        return self.base.data(part)  # type: ignore[no-any-return]

    def collate(self, examples: list[Any]) -> Any:
        """Return a batch of the base."""
        return self.base.collate(examples)

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """Map the teacher's outputs as the base does."""
        return self.base.teacher_adaptor(batch, outputs)  # type: ignore[no-any-return]

    def student_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """Map the student's outputs as the base does."""
        return self.base.student_adaptor(batch, outputs)  # type: ignore[no-any-return]

    def evaluate(self, model: Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Return the base's metrics."""
        return self.base.evaluate(model, batches)  # type: ignore[no-any-return]

    @property
    def is_lower_better(self) -> bool:
        """Return whether a lower value of the base's metric is better."""
        return getattr(self.base, "is_lower_better", False)

    @property
    def unit(self) -> str:
        """The base's unit of throughput."""
        return getattr(self.base, "unit", "examples")

    @property
    def starts_student(self) -> bool:
        """Return whether the base initialises its student from the teacher."""
        return getattr(self.base, "starts_student", False)

    @property
    def prepares_batches(self) -> bool:
        """Return whether the base generates batches during distillation."""
        return getattr(self.base, "prepares_batches", False)

    @property
    def vocabulary_difference(self) -> str:
        """The base's difference between the vocabularies of student and teacher."""
        return getattr(self.base, "vocabulary_difference", "")


def _build(base: Any) -> Any:
    try:
        component = tasks.build(parse_spec(base))
    except KdplugError as error:
        raise error.at("base") from error.__cause__
    lacking = [name for name in vars(Task) if not name.startswith("_") and not hasattr(component.target, name)]
    if lacking:
        raise ConfigError(f"{component.entry.qualified} is not a task: it lacks {', '.join(lacking)}", field="base")
    return component.target
