"""What the members of the family of tasks differ in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from kdplug_tasks.batch import Batch
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.example import Sized

if TYPE_CHECKING:
    from kdplug_tasks.models.family import Family

Adapt = Callable[[Batch, Any], dict[str, Any]]


class Problem(Protocol):
    """What is asked of the models: which columns there are, how they become batches, and what a good answer is.

    ``auto`` is the class of transformers that makes the models, ``metric`` the figure for the final table, ``unit`` what
    throughput is counted in.
    """

    auto: str
    columns: Columns
    metric: str
    is_lower_better: bool
    unit: str

    def settle(self, source: Source, family: Family) -> None:
        """Learn from the data and a trained teacher what the models must be: their classes, the tokenizer.

        It fills ``family.changes`` and ``family.from_scratch``, and checks that the models fit.

        Raises: ``ConfigError``.
        """
        ...

    def examples(self, table: Table, *, optional: bool) -> Sized:
        """The examples of a table; ``optional`` allows rows without a target. Raises: ``ConfigError``."""
        ...

    def collate(self, examples: list[Any]) -> Batch:
        """A batch from examples."""
        ...

    def adaptor(self) -> Adapt:
        """What a model returned, under the adaptor keys. It is asked for before ``settle``, and used after it.

        It holds no data, so that a teacher cache can tell by it whether its outputs are still those of this adaptor.
        """
        ...

    def count(self, batch: Batch) -> int:
        """How many units a batch holds."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
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
