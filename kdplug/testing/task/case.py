"""A task under test: its data and models, as the laws ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, get_args

from torch import nn

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.task import Part, SpansVocabularies, Task
from kdplug.engine.hashing import digest
from kdplug.engine.training_module import Parts, call, split
from kdplug.errors import OutputsError, RunError
from kdplug.testing.law import Laws, broken
from kdplug.testing.sample import seeded

PARTS: tuple[Part, ...] = get_args(Part)


class TaskCase(Laws):
    """What the author of a task declares about it, beside its entry."""

    examples: ClassVar[int] = 4
    """How many examples of each part are looked at."""

    @classmethod
    def kind_of(cls) -> str:
        return "tasks"

    def task(self, seed: int = 0) -> Any:
        """A fresh task, made with torch's global generator at ``seed``."""
        with seeded(seed):
            return self.build().target

    def batch(self, task: Task, part: Part, seed: int = 0, places: slice = slice(None)) -> Any:
        """The first examples of a part as a batch, or those of them at ``places``."""
        with seeded(seed):
            data: Any = task.data(part)
            chosen = range(min(self.examples, len(data)))[places]
            return task.collate([data[index] for index in chosen])

    def outputs(self, task: Task, part: Part) -> Iterator[tuple[str, nn.Module, Outputs]]:
        """What each side returns for a batch of a part, in eval mode: its name, its model, its outputs.

        Where each side has a vocabulary of its own, what the teacher is fitted on is for the teacher alone.
        """
        batch = split(self.batch(task, part))
        for side in ("teacher",) if part == "teacher" and spans(task) else ("teacher", "student"):
            with seeded(0):
                model = (task.build_teacher() if side == "teacher" else task.build_student()).eval()
                yield side, model, self.read(task, side, model, batch, f"data({part!r})")

    def read(self, task: Any, side: str, model: nn.Module, batch: Parts, what: str) -> Outputs:
        """What the adaptor of a side makes of a model's outputs."""
        own = getattr(batch, side)
        try:
            return Outputs.read(getattr(task, f"{side}_adaptor")(own, call(model, own, {})), side)
        except OutputsError as error:
            broken(f"{side}_adaptor of {what}: {error}")


def spans(task: Any) -> bool:
    """Whether teacher and student have vocabularies of their own."""
    return isinstance(task, SpansVocabularies) and bool(task.vocabulary_difference)


def alike(one: Any, two: Any) -> bool:
    """Whether two batches hold the same, bit by bit and in the same places, what stands beside a mapping's items included."""
    if isinstance(one, Mapping):
        if not isinstance(two, Mapping) or list(one) != list(two):
            return False
        return all(alike(one[key], two[key]) for key in one) and alike(_beside(one), _beside(two))
    if isinstance(one, Sequence) and not isinstance(one, (str, bytes)):
        return isinstance(two, Sequence) and len(one) == len(two) and all(map(alike, one, two))
    try:
        return digest(one) == digest(two)
    except RunError:  # of an object that cannot be written down nothing more is known
        return type(one) is type(two)


def _beside(mapping: Mapping[Any, Any]) -> list[Any]:
    """What an object that is a mapping holds beside its items: labels that are not to reach the model, say."""
    return list(getattr(mapping, "__dict__", {}).values())
