"""What a transformers model shows of its inside, under the adaptor keys."""

from __future__ import annotations

from typing import Any


def features(outputs: Any) -> dict[str, Any]:
    """``hidden`` and ``attention`` where the model was told to return them.

    A feature map ``[batch, channels, height, width]`` becomes a sequence of positions ``[batch, positions, channels]``.
    """
    found: dict[str, Any] = {}
    if outputs.get("hidden_states") is not None:
        found["hidden"] = tuple(
            state.flatten(2).transpose(1, 2) if state.dim() == 4 else state for state in outputs.hidden_states
        )
    if outputs.get("attentions") is not None:
        found["attention"] = outputs.attentions
    return found
