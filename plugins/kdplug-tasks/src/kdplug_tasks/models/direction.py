"""Whether a language model sees only what came before."""

from __future__ import annotations

from typing import Any

import kdplug


def check_direction(config: Any, side: str) -> None:
    """Raises: ``ConfigError`` for a model that sees the tokens it is to predict."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise kdplug.ConfigError(f"transformers has no causal language model of type {config.model_type!r}", field=side)
    if kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise kdplug.ConfigError(
            f"a {config.model_type} model sees the tokens that it is to predict, unless its config says is_decoder: true",
            field=side,
        )
