"""The ``tokenizer`` setting of a task."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

import kdplug
from kdplug_tasks.setting import Place, Settings, or_text


class TokenizerSettings(Settings):
    """A folder or hub name, or ``{train: bytes-bpe, vocab: 512}`` to train one on the training data.

    A string means ``{path: …}``, and ``bytes`` means ``{train: bytes}``.
    """

    model_config = ConfigDict(json_schema_extra=or_text)

    path: Place | None = None
    """A folder or hub name."""
    train: Literal["bytes-bpe", "bytes"] | None = None
    """Train a byte-level tokenizer: ``bytes-bpe`` learns merges from the training data, ``bytes`` has none."""
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
            raise kdplug.ConfigError("set exactly one of path and train")
        if (self.train == "bytes-bpe") != (self.vocab is not None):
            raise kdplug.ConfigError(
                "vocab, the number of tokens, is required with train: bytes-bpe and not allowed otherwise"
            )
        return self
