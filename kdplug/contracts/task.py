"""What a recipe's ``task:`` gives to a run: models, data, adaptors and a metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.data import Dataset

Part = Literal["teacher", "distillation", "baseline", "test"]
"""A part of a task's data: what the teacher is fitted on, what the student is distilled on, what the student is trained on
where there is no teacher, and what every model is evaluated on."""


class TeacherFit(TypedDict):
    """How an untrained teacher is fitted: AdamW, learning rate falling linearly to 0."""

    epochs: int
    batch_size: int
    learning_rate: float


@runtime_checkable
class Task(Protocol):
    """Models, data, adaptors and a metric.

    A class that offers these names is a task; it need not import kdplug. Its ``__init__`` takes settings, keyword-only,
    and is cheap: data is read and models are built when a method asks for them.

    A batch that is a mapping goes to a model as keyword arguments, a tuple or list as positional ones, anything else as
    the only argument.
    """

    @property
    def metric(self) -> str:
        """The figure of ``evaluate`` that stands in the final table; more of it is better, unless the task is ``Directed``."""
        ...

    def about(self) -> str:
        """One or two sentences for the start of a run: the data, and what the student may see of it."""
        ...

    def build_teacher(self) -> Module:
        """The teacher; its initial weights, where they are random, come from torch's global generator."""
        ...

    def teacher_fit(self) -> TeacherFit | None:
        """How to fit the teacher on ``data("teacher")``, or ``None`` where ``build_teacher`` returns a trained one."""
        ...

    def build_student(self) -> Module:
        """The student; its initial weights, where they are random, come from torch's global generator."""
        ...

    def data(self, part: Part) -> Dataset[Any]:
        """The examples of one part, in a fixed order."""
        ...

    def collate(self, examples: list[Any]) -> Any:
        """A batch from examples of any part."""
        ...

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """What the teacher returned, under the adaptor keys; ``losses`` wherever the batch has labels."""
        ...

    def student_adaptor(self, batch: Any, outputs: Any) -> Mapping[str, Any]:
        """What the student returned, under the adaptor keys; ``losses`` wherever the batch has labels."""
        ...

    def evaluate(self, model: Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Figures of a model over batches, by name. ``model`` is in eval mode, gradients are off, devices agree."""
        ...
