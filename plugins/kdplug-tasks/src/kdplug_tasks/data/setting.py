"""The ``data`` setting of a task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

import kdplug
from kdplug_tasks.setting import LARGEST, Place, Settings, WholeNumber

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "conllu", "text", "npz", "pictures"]
Split = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]


class DataSettings(Settings):
    """Location of the examples: files, folders of images, or splits of a ``dataset``."""

    train: Place | None = None
    """Training data: a file, a folder of images, or a split of ``dataset``."""
    distillation: Place | None = None
    """Data for distillation, in the same forms; rows may lack labels. Default: ``train``."""
    validation: Split | Place = 0.1
    """Validation data, on which checkpoints and settings are chosen, in the same forms, or the fraction of ``train`` to
    hold out: rows, or a stretch of a running text, at its end or before the test data.
    """
    test: Split | Place
    """Test data, in the same forms, or the fraction of ``train`` to hold out: rows, or the end of a running text. It is
    read once, at the end of a run.
    """
    dataset: Place | None = None
    """A dataset for ``datasets`` to load: a name on the hub, or a folder that ``save_to_disk`` wrote."""
    config: Name | None = None
    """Configuration of ``dataset``."""
    revision: Name | None = None
    """Revision of ``dataset``."""
    format: Format | None = None
    """Format of the files. Default: inferred from their extensions."""
    columns: dict[str, Name | Annotated[int, Strict(), Field(ge=1, le=LARGEST)]] = {}
    """Column names that differ from the task's: ``{text: sentence}``, or ``{tags: xpos}`` in CoNLL-U. In other CoNLL
    files, column numbers, counted from 1: ``{tokens: 1, tags: 4}``.
    """
    header: Annotated[list[str], Field(min_length=1)] | None = None
    """Column names of a CSV or TSV file without a header line."""
    delimiter: Literal[",", ";", "|", "\t"] | None = None
    """Separator of the columns in CSV files. Default: a comma."""
    split_seed: WholeNumber = 0
    """Seed that selects the rows to hold out of ``train`` if ``validation`` or ``test`` is a fraction."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.dataset is None and self.train is None:
            raise kdplug.ConfigError("train is required (a file) unless dataset is set")
        if self.dataset is None:
            keys: tuple[str, ...] = ("config", "revision")
            why = "has no effect without dataset"
        else:
            keys = ("format", "header", "delimiter")
            why = "applies to files and has no effect with dataset"
        for key in keys:
            if getattr(self, key):
                raise kdplug.ConfigError(f"{key} {why}. Remove {key}")
        if isinstance(self.validation, float) and isinstance(self.test, float) and self.validation + self.test >= 1:
            raise kdplug.ConfigError(
                f"validation ({self.validation:g}) and test ({self.test:g}) leave no data for training. Decrease one of them"
            )
        return self
