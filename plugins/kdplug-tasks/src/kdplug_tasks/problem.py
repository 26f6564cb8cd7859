"""Interface of a problem: the part in which tasks on transformers models differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

import kdplug
from kdplug_tasks.batch import Batch, Sized
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table

if TYPE_CHECKING:
    from kdplug_tasks.models.family import Family, Side
    from kdplug_tasks.text.frame import Frame
    from kdplug_tasks.text.processor import TextProcessor

Adapt = Callable[[Batch, Any], dict[str, Any]]


class Problem(Protocol):
    """Defines the columns, how rows become batches, and the metrics.

    ``auto`` is the transformers auto class that builds the models.
    """

    auto: str
    columns: Columns
    is_lower_better: bool

    @property
    def metric(self) -> str:
        """Name of the main metric, for the final table."""
        ...

    @property
    def unit(self) -> str:
        """Unit of throughput."""
        ...

    def settle(self, source: Source, family: Family) -> None:
        """Determine classes and tokenizer from the data and a trained teacher.

        Sets ``family.changes`` and ``family.from_scratch``, and checks that the models match the data.

        Raises: ``ConfigError``.
        """
        ...

    def examples(self, table: Table, *, optional: bool) -> Sized:
        """Return the examples of a table; ``optional`` allows rows without a target. Raises: ``ConfigError``."""
        ...

    def collate(self, examples: list[Any]) -> Batch | Mapping[str, Batch]:
        """Return a batch of examples, or one for each side."""
        ...

    def adaptor(self) -> Adapt:
        """Return the adaptor, a function of batch and model outputs. Created before ``settle``, used after it.

        The function must hold no data, so that a teacher cache can check that its outputs came from the same adaptor.
        """
        ...

    def count(self, batch: Any) -> int:
        """Return the number of units in a batch."""
        ...

    def predict(self, model: nn.Module, batches: Iterable[Any]) -> kdplug.Predictions:
        """Return a model's metrics over batches, and its prediction for each example."""
        ...

    def about(self) -> str:
        """Describe the target, or how texts are divided."""
        ...

    def save(self, folder: Path, side: Side) -> None:
        """Write the files of one side's saved model other than config and weights."""
        ...


@runtime_checkable
class Sampling(Protocol):
    """A problem for which the student may generate batches itself."""

    @property
    def samples(self) -> bool:
        """True if the student generates some batches."""
        ...

    def sampled(self, batch: Batch, student: nn.Module) -> Batch:
        """Return a batch that the student generated, or ``batch`` itself."""
        ...


@runtime_checkable
class Reviewing(Protocol):
    """A problem that can detect data unlike those that a trained teacher was trained on."""

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterable[tuple[str, str]]:
        """Yield a setting and a warning about it, from the teacher's outputs on the first batches."""
        ...


@runtime_checkable
class ReviewingData(Protocol):
    """A problem that can detect valid but probably unintended properties of its data."""

    def review_data(self, source: Source) -> Iterable[tuple[str, str]]:
        """Yield a setting and a warning about it. Used after ``settle``."""
        ...


@runtime_checkable
class Spanning(Protocol):
    """A problem whose two sides may have different vocabularies, and so different inputs. Used after ``settle``."""

    @property
    def spans_vocabularies(self) -> bool:
        """True if the vocabularies differ. A batch is then a mapping from side to batch."""
        ...

    def processor_of(self, side: Side) -> TextProcessor:
        """Return the processor of one side's inputs."""
        ...

    def frame_of(self, side: Side) -> Frame:
        """Return the special tokens around one side's documents."""
        ...

    def adaptor(self, side: Side) -> Adapt:
        """Return the adaptor of one side."""
        ...

    def examples_of_teacher(self, examples: Any) -> Sized:
        """Return the teacher's part of the student's training examples."""
        ...

    def part_of(self, batch: Any, model: nn.Module) -> Batch:
        """Return the part of a batch that is the model's input."""
        ...
