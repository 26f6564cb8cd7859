"""Teacher logits stored as hidden states, with the head stored once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from kdplug import Encoded, FactoredLogits, Ragged, SettingError
from kdplug_logits.codec.packing import dtype_of, largest_error, part_of, unrepresentable


class Hidden:
    """Stores the last hidden state of each valid item, and the teacher's head once: the full distribution.

    The teacher's adaptor must return ``kdplug.FactoredLogits(hidden, head.weight, head.bias)`` as ``logits``. At width
    4096 and bfloat16 an item takes 8,192 bytes, where 152,000 logits take 304,000. Decoding returns ``FactoredLogits``,
    on which losses are computed in chunks.

    Settings: ``dtype`` narrows the hidden states; without it they are stored exactly.
    """

    uses_temperature = False
    takes_factored = True

    def __init__(self, *, dtype: Literal["float16", "bfloat16", "float32"] | None = None) -> None:
        self.dtype = dtype

    def shared(self, logits: Any) -> dict[str, Tensor]:
        """Return the head.

        Raises: ``SettingError`` if the logits are already multiplied out.
        """
        factors = _factors(logits)
        numbers = {"scale": factors.scale, "softcap": factors.softcap}
        return {
            "weight": factors.weight,
            **({} if factors.bias is None else {"bias": factors.bias}),
            **{name: torch.tensor(one, dtype=torch.float64) for name, one in numbers.items() if one is not None},
        }

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:  # noqa: ARG002  neither is used
        """Return the hidden states and their rounding error.

        Shapes: ``FactoredLogits`` of ``[n, classes]``.
        Raises: ``SettingError`` for dense logits, and for a hidden state that ``dtype`` cannot represent.
        """
        hidden = _factors(logits).hidden.detach()
        kept = hidden if self.dtype is None else hidden.to(dtype_of(self.dtype))
        if self.dtype is not None and bool((hidden.isfinite() & ~kept.isfinite()).any()):
            raise unrepresentable("hidden state", hidden, self.dtype, "Remove dtype to store hidden states exactly")
        return Encoded({"hidden": kept}, error=largest_error(hidden, kept))

    def decode(
        self,
        parts: Mapping[str, Tensor | Ragged],
        shared: Mapping[str, Tensor],
        *,
        classes: int,  # noqa: ARG002  the head has as many
        temperature: float,  # noqa: ARG002  hidden states are not divided by it
    ) -> FactoredLogits:
        """Return hidden states and head, not multiplied out."""
        weight = shared["weight"]
        return FactoredLogits(
            part_of(parts, "hidden").to(weight.dtype),
            weight,
            shared.get("bias"),
            _number(shared.get("scale")),
            _number(shared.get("softcap")),
        )


def _factors(logits: Any) -> FactoredLogits:
    if isinstance(logits, FactoredLogits):
        return logits
    raise SettingError(
        "codec 'hidden' stores hidden states, but the teacher's adaptor returned dense logits. Return "
        "kdplug.FactoredLogits(hidden, head.weight, head.bias) as logits, or use another codec: dense, topk_tail, "
        "sampled"
    )


def _number(tensor: Tensor | None) -> float | None:
    return None if tensor is None else float(tensor)
