"""All teacher logits, stored in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from kdplug import Encoded, Ragged
from kdplug_logits.codec.packing import dtype_of, largest_error, part_of, unrepresentable


class Dense:
    """Stores every logit of the valid items, in 16 or 32 bits.

    Settings: ``dtype`` is ``float16``, ``bfloat16`` (a wider range, coarser) or ``float32``.
    """

    uses_temperature = False
    takes_factored = False

    def __init__(self, *, dtype: Literal["float16", "bfloat16", "float32"] = "float16") -> None:
        self.dtype = dtype

    def shared(self, logits: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  no shared data
        """Return no tensors."""
        return {}

    def encode(self, logits: Tensor, *, temperature: float, seed: int) -> Encoded:  # noqa: ARG002  neither is used
        """Return the logits, cast to ``dtype``.

        Shapes: ``[n, classes]``.
        Raises: ``SettingError`` for a logit that ``dtype`` cannot represent.
        """
        kept = logits.detach().to(dtype_of(self.dtype))
        if bool((logits.isfinite() & ~kept.isfinite()).any()):
            raise unrepresentable(
                "logit", logits, self.dtype, "Scale the teacher's logits down to the range of float32"
            )
        return Encoded({"logits": kept}, error=largest_error(logits.detach(), kept))

    def decode(
        self,
        parts: Mapping[str, Tensor | Ragged],
        shared: Mapping[str, Tensor],  # noqa: ARG002  no shared data
        *,
        classes: int,  # noqa: ARG002  the logits have as many
        temperature: float,  # noqa: ARG002  the logits were not divided by it
    ) -> Tensor:
        """Return the stored logits."""
        return part_of(parts, "logits")
