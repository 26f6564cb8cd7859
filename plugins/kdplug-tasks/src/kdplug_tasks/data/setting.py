"""``data:`` of a task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

import kdplug
from kdplug_tasks.setting import Settings

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "text", "npz", "pictures"]
Split = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]


class DataSettings(Settings):
    """Where the examples are.

    ``train``, ``distillation`` and ``test`` are files, folders of pictures, or splits where ``dataset`` names what ``datasets`` loads: a name on the
    hub, with ``config`` and ``revision``, or a folder that ``save_to_disk`` wrote. ``test`` may be a share of ``train``, which
    ``split_seed`` chooses. ``distillation`` is ``train`` unless it is given; its rows may lack labels. The ``format`` of a file
    shows in its ending. ``columns`` says what a column is called that has another name than the task's. ``header`` names the
    columns of a CSV or TSV file whose first line does not.
    """

    train: Name | None = None
    distillation: Name | None = None
    test: Split | Name
    dataset: Name | None = None
    config: Name | None = None
    revision: Name | None = None
    format: Format | None = None
    columns: dict[str, Name] = {}
    header: Annotated[list[str], Field(min_length=1)] | None = None
    split_seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.dataset is None and self.train is None:
            raise kdplug.ConfigError("train is required: a file, or a split where 'dataset' is given")
        if self.dataset is None and (self.config or self.revision):
            raise kdplug.ConfigError("config and revision have no effect without 'dataset'")
        if self.dataset is not None and (self.format or self.header):
            raise kdplug.ConfigError("format and header are about files, and have no effect beside 'dataset'")
        return self
