"""Problems with one prediction per text or pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor, nn

import kdplug
from kdplug_tasks.batch import Batch, Examples, features, with_inputs
from kdplug_tasks.data.source import Columns, Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.models.family import Family, Side
from kdplug_tasks.problem import Adapt
from kdplug_tasks.targets.category import at_least_float32, review_accuracy
from kdplug_tasks.text.processor import TextProcessor, texts_of
from kdplug_tasks.text.setting import TokenizerSettings


class Target(Protocol):
    """Reads a target from ``columns``, and computes its loss and metrics."""

    columns: tuple[str, ...]
    metric: str

    def settle(self, source: Source, teacher: Any) -> dict[str, Any]:
        """Return config values for the models. ``teacher`` is the config of a trained teacher, else ``None``.

        Raises: ``ConfigError``.
        """
        ...

    def read(self, table: Table, *, optional: bool) -> list[Any]:
        """Return the target of each row. Raises: ``ConfigError`` for a row without one, unless ``optional``."""
        ...

    def collate(self, values: Sequence[Any]) -> Tensor:
        """Return the targets of a batch."""
        ...

    def adapted(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the loss over rows with a target as ``losses``, a ``LossSum``, and ``labels`` if targets are classes."""
        ...

    def rows(self, logits: Tensor, targets: Tensor) -> list[kdplug.Prediction]:
        """Return the prediction for each row of a batch."""
        ...

    def predictions(self, rows: Sequence[kdplug.Prediction]) -> kdplug.Predictions:
        """Return the predictions for all rows, with their metrics."""
        ...

    def review(self, source: Source) -> Iterable[tuple[str, str]]:
        """Yield a setting and a warning about it, for targets that are probably unintended."""
        ...

    def about(self) -> str:
        """Describe the target, for the start of a run."""
        ...


Length = Annotated[int, Field(ge=2, le=1 << 24)]
"""Maximum number of tokens in an example."""
Names = Annotated[list[str], Field(min_length=2)]


class Sequences:
    """The problem of predicting a target for the text, or two texts, in the columns ``inputs``."""

    auto = "AutoModelForSequenceClassification"
    is_lower_better = False
    unit = "examples"

    def __init__(
        self,
        inputs: tuple[str, ...],
        target: Target,
        tokenizer: TokenizerSettings | None,
        max_length: int,
        *,
        optional: tuple[str, ...] = (),
    ) -> None:
        self.inputs: tuple[str, ...] = inputs
        self.target = target
        self.metric = target.metric
        self.columns = Columns(inputs, target.columns, optional)
        self._settings = tokenizer
        self._max_length = max_length
        self._processor: TextProcessor | None = None

    @property
    def processor(self) -> TextProcessor:
        """The tokenizer; available after ``settle``."""
        assert self._processor is not None
        return self._processor

    def settle(self, source: Source, family: Family) -> None:
        """Determine the tokenizer, and what the target takes from the data and the teacher, such as classes."""
        family.changes = self.target.settle(source, family.trained)
        self.inputs += tuple(name for name in self.columns.optional if name in source.train.columns)
        texts = (text for name in self.inputs for text in texts_of(source.train, name))
        self._processor = TextProcessor.find(self._settings, family, texts, self._max_length)
        family.from_scratch = self._processor.from_scratch
        self._processor.check(family)

    def examples(self, table: Table, *, optional: bool) -> Examples:
        """Return each row as ids and target."""
        inputs = self.processor.encode(*[texts_of(table, name) for name in self.inputs])
        return Examples(list(zip(inputs, self.target.read(table, optional=optional), strict=True)))

    def collate(self, examples: list[Any]) -> Batch:
        """Return a padded batch."""
        inputs = self.processor.pad([inputs for inputs, _ in examples])
        return Batch(inputs, {"target": self.target.collate([target for _, target in examples])})

    def adaptor(self) -> Adapt:
        """Return the adaptor: logits, loss, labels, features and mask."""
        target = self.target

        def adapt(batch: Batch, outputs: Any) -> dict[str, Any]:
            found = target.adapted(outputs.logits, batch.targets["target"])
            return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"], **found, **features(outputs)}

        return adapt

    def count(self, batch: Batch) -> int:
        """Return the number of texts or pairs."""
        return len(batch["input_ids"])

    def predict(self, model: nn.Module, batches: Iterable[Batch]) -> kdplug.Predictions:
        """Return the target's metrics, and the prediction for each text or pair."""
        rows: list[kdplug.Prediction] = []
        for batch in batches:
            logits = at_least_float32(model(**batch).logits).cpu()
            found = self.target.rows(logits, batch.targets["target"].cpu())
            rows += with_inputs(found, self.processor.shown(batch))
        return self.target.predictions(rows)

    def review_data(self, source: Source) -> Iterator[tuple[str, str]]:
        """Yield warnings about the target, empty texts, and texts that are truncated."""
        yield from self.target.review(source)
        for table in source.tables:
            for name in self.columns.inputs:
                empty = [row for row, text in enumerate(texts_of(table, name)) if not text.strip()]
                if empty:
                    message = f"{name} is empty in {len(empty)} of {len(table)} rows, first in {table.place(empty[0])}. Remove rows without {name}"
                    yield table.field, message
        columns = [[text for table in source.tables for text in texts_of(table, name)] for name in self.inputs]
        yield from self.processor.review_length(*columns)

    def review_teacher(self, outputs: Iterable[kdplug.Outputs]) -> Iterator[tuple[str, str]]:
        """Yield a warning if the teacher predicts the classes no better than by chance."""
        return review_accuracy(outputs)

    def about(self) -> str:
        """Describe the target."""
        return self.target.about()

    def save(self, folder: Path, side: Side) -> None:  # noqa: ARG002
        """Write the tokenizer, which both sides share."""
        self.processor.save(folder)
