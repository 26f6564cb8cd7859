"""``data:`` of a task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

import kdplug
from kdplug_tasks.setting import LARGEST, Settings, WholeNumber

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "conllu", "text", "npz", "pictures"]
Split = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]


class DataSettings(Settings):
    """Where the examples are: in files, in folders of pictures, or in the splits of a ``dataset``."""

    train: Name | None = None
    """A file, a folder of pictures, or a split of ``dataset``: what models are trained on."""
    distillation: Name | None = None
    """The same for what the student is distilled on; its rows may lack labels. ``train`` unless it is given."""
    test: Split | Name
    """The same for what models are evaluated on, or a share of ``train``."""
    dataset: Name | None = None
    """What ``datasets`` loads: a name on the hub, or a folder that ``save_to_disk`` wrote."""
    config: Name | None = None
    """Which configuration of ``dataset``."""
    revision: Name | None = None
    """Which revision of ``dataset``."""
    format: Format | None = None
    """Of the files; otherwise their endings show it."""
    columns: dict[str, Name | Annotated[int, Strict(), Field(ge=1, le=LARGEST)]] = {}
    """What a column is called that has another name than the task's: ``{text: sentence}``, ``{tags: xpos}`` in CoNLL-U. In other
    CoNLL files columns have numbers, counted from 1: ``{tokens: 1, tags: 4}``."""
    header: Annotated[list[str], Field(min_length=1)] | None = None
    """The columns of a CSV or TSV file whose first line does not name them."""
    split_seed: WholeNumber = 0
    """Chooses which rows of ``train`` are tested on, where ``test`` is a share."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.dataset is None and self.train is None:
            raise kdplug.ConfigError("train is required: a file, or a split where 'dataset' is given")
        if self.dataset is None and (self.config or self.revision):
            raise kdplug.ConfigError("config and revision have no effect without 'dataset'")
        if self.dataset is not None and (self.format or self.header):
            raise kdplug.ConfigError("format and header are about files, and have no effect beside 'dataset'")
        return self
