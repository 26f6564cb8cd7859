"""``tokenizer:`` of a task."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

import kdplug
from kdplug_tasks.setting import Settings, or_text


class TokenizerSettings(Settings):
    """A folder or hub name, or ``{train: bytes-bpe, vocab: 512}`` for one that is made from the training data.

    A text stands for ``{path: …}``, and ``bytes`` for ``{train: bytes}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Annotated[str, Field(min_length=1)] | None = None
    """A folder or hub name."""
    train: Literal["bytes-bpe", "bytes"] | None = None
    """One made from the training data: ``bytes-bpe`` merges bytes, so that any text can be written; ``bytes`` does not."""
    vocab: Annotated[int, Field(ge=260, le=1 << 24)] | None = None
    """The number of tokens of ``bytes-bpe``."""

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"train": "bytes"} if data == "bytes" else {"path": data}
        return data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise kdplug.ConfigError("give exactly one of path and train")
        if (self.train == "bytes-bpe") != (self.vocab is not None):
            raise kdplug.ConfigError("vocab, the number of tokens, goes with train: bytes-bpe and with nothing else")
        return self
