"""What the members of the family of tasks differ in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from kdplug_tasks.batch import Batch, Sized
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table

if TYPE_CHECKING:
    from kdplug_tasks.models.family import Family, Side
    from kdplug_tasks.text.frame import Frame
    from kdplug_tasks.text.processor import TextProcessor

Adapt = Callable[[Batch, Any], dict[str, Any]]


class Problem(Protocol):
    """What is asked of the models: which columns there are, how they become batches, and what a good answer is.

    ``auto`` is the class of transformers that makes the models.
    """

    auto: str
    columns: Columns
    is_lower_better: bool

    @property
    def metric(self) -> str:
        """The figure for the final table."""
        ...

    @property
    def unit(self) -> str:
        """What throughput is counted in."""
        ...

    def settle(self, source: Source, family: Family) -> None:
        """Learn from the data and a trained teacher what the models must be: their classes, the tokenizer.

        It fills ``family.changes`` and ``family.from_scratch``, and checks that the models fit.

        Raises: ``ConfigError``.
        """
        ...

    def examples(self, table: Table, *, optional: bool) -> Sized:
        """The examples of a table; ``optional`` allows rows without a target. Raises: ``ConfigError``."""
        ...

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """A batch from examples, or one for each side."""
        ...

    def adaptor(self) -> Adapt:
        """What a model returned, under the adaptor keys. It is asked for before ``settle``, and used after it.

        It holds no data, so that a teacher cache can tell by it whether its outputs are still those of this adaptor.
        """
        ...

    def count(self, batch: Any) -> int:
        """How many units a batch holds."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """The figures of a model over batches."""
        ...

    def about(self) -> str:
        """A sentence on the classes, or on how texts are cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write what belongs to a saved model beside its weights."""
        ...


@runtime_checkable
class Sampling(Protocol):
    """A problem of which a student may write batches itself."""

    @property
    def samples(self) -> bool:
        """Whether it is to."""
        ...

    def sampled(self, batch: Batch, student: nn.Module) -> Batch:
        """A batch that the student wrote, or ``batch`` itself."""
        ...


@runtime_checkable
class Spanning(Protocol):
    """A problem whose two sides may have vocabularies, and so inputs, of their own. All of it is asked for after ``settle``."""

    @property
    def spans_vocabularies(self) -> bool:
        """Whether they have. A batch is then one for each side, by its name."""
        ...

    def processor_of(self, side: Side) -> TextProcessor:
        """What makes inputs of a row for one side."""
        ...

    def frame_of(self, side: Side) -> Frame:
        """What documents of one side begin and end with."""
        ...

    def adaptor(self, side: Side) -> Adapt:
        """The adaptor of one side."""
        ...

    def examples_of_teacher(self, examples: Any) -> Sized:
        """What the teacher is fitted on, of what the student is trained on."""
        ...

    def part_of(self, batch: Any, model: nn.Module) -> Batch:
        """What a model is given of a batch."""
        ...
