"""Build the data, models and batches of a task under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.task import Part, SpansVocabularies, Task
from kdplug.contracts.tree import opened
from kdplug.engine.hashing import digest
from kdplug.engine.training_module import Parts, call, split
from kdplug.errors import OutputsError, RunError
from kdplug.testing.law import Laws, broken
from kdplug.testing.sample import seeded

PARTS: tuple[Part, ...] = get_args(Part)


class TaskCase(Laws):
    """Declarations of a task's author, in addition to the entry."""

    examples: ClassVar[int] = 4
    """Number of examples of each part that the tests use."""

    @classmethod
    def kind_of(cls) -> str:
        return "tasks"

    def task(self, seed: int = 0) -> Any:
        """Build a fresh task, with torch's global generator at ``seed``."""
        with seeded(seed):
            return self.build().target

    def batch(self, task: Task, part: Part, seed: int = 0, places: slice = slice(None)) -> Any:
        """Collate the first examples of a part, or those at ``places``."""
        with seeded(seed):
            data: Any = task.data(part)
            chosen = range(min(self.examples, len(data)))[places]
            return task.collate([data[index] for index in chosen])

    def outputs(self, task: Task, part: Part) -> Iterator[tuple[str, nn.Module, Outputs]]:
        """Yield each side's name, model and outputs for a batch of a part, in eval mode.

        If the sides have different vocabularies, the data for training the teacher are for the teacher only.
        """
        batch = split(self.batch(task, part))
        for side in ("teacher",) if part == "teacher" and spans(task) else ("teacher", "student"):
            with seeded(0):
                model = (task.build_teacher() if side == "teacher" else task.build_student()).eval()
                yield side, model, self.read(task, side, model, batch, f"data({part!r})")

    def read(self, task: Any, side: str, model: nn.Module, batch: Parts, what: str) -> Outputs:
        """Run the adaptor of a side on a model's outputs."""
        own = getattr(batch, side)
        try:
            return Outputs.read(getattr(task, f"{side}_adaptor")(own, call(model, own, {})), side)
        except OutputsError as error:
            broken(f"{side}_adaptor of {what}: {error}")


def offers(task: Any, option: type) -> bool:
    """Return whether a task has the members of an optional protocol."""
    return isinstance(task, option)


def spans(task: Any) -> bool:
    """Return whether teacher and student have different vocabularies."""
    return isinstance(task, SpansVocabularies) and bool(task.vocabulary_difference)


def same_content(one: Any, two: Any) -> bool:
    """Return whether two batches are bitwise equal, including a mapping's attributes."""
    items, others = opened(one), opened(two)
    if isinstance(items, dict):
        if not isinstance(others, dict) or list(items) != list(others):
            return False
        is_same = all(same_content(items[key], others[key]) for key in items)
        return is_same and same_content(_attributes(one), _attributes(two))
    if isinstance(items, list):
        return isinstance(others, list) and len(items) == len(others) and all(map(same_content, items, others))
    try:
        return digest(one) == digest(two)
    except RunError:  # an object that cannot be serialized cannot be compared further
        return type(one) is type(two)


def _attributes(container: Any) -> list[Any]:
    """Return the attributes of a mapping, such as labels hidden from the model."""
    return list(getattr(container, "__dict__", {}).values()) if isinstance(container, Mapping) else []
