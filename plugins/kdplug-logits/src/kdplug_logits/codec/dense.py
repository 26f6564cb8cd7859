"""Teacher logits as they are, in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from kdplug import Encoded, Ragged, SettingError
from kdplug_logits.codec.packing import dtype_of, largest_error, part_of


class Dense:
    """Every logit of the items that count, in 16 bits or 32.

    Settings: ``dtype`` is ``float16``, ``bfloat16`` (a wider range, coarser) or ``float32``.
    """

    uses_temperature = False
    takes_factored = False

    def __init__(self, *, dtype: Literal["float16", "bfloat16", "float32"] = "float16") -> None:
        self.dtype = dtype

    def shared(self, logits: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  nothing is kept once for all
        """Nothing."""
        return {}

    def encode(self, logits: Tensor, *, temperature: float, seed: int) -> Encoded:  # noqa: ARG002  neither matters
        """The logits, narrowed.

        Shapes: ``[n, classes]``.
        Raises: ``SettingError`` for a logit that the dtype cannot hold.
        """
        kept = logits.detach().to(dtype_of(self.dtype))
        if bool((logits.isfinite() & ~kept.isfinite()).any()):
            raise SettingError(
                f"a logit is {logits[logits.isfinite()].abs().max().item():g}, which {self.dtype} cannot hold. Write bfloat16",
                field="dtype",
            )
        return Encoded({"logits": kept}, error=largest_error(logits.detach(), kept))

    def decode(
        self,
        parts: Mapping[str, Tensor | Ragged],
        shared: Mapping[str, Tensor],  # noqa: ARG002  nothing is kept once for all
        *,
        classes: int,  # noqa: ARG002  the logits are as many
        temperature: float,  # noqa: ARG002  they were not divided by it
    ) -> Tensor:
        """The logits as they were kept."""
        return part_of(parts, "logits")
