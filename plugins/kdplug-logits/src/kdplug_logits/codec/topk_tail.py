"""Teacher logits stored as their most likely classes and the total mass of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdplug import Encoded, Ragged, SparseLogits
from kdplug_logits.codec.packing import pack, part_of, quantize, require_known, restore, unpack, width_of


class TopkTail:
    """Stores the ``k`` most likely classes of each item with their log-probabilities at the recipe's temperature, and
    the mass of all others combined. Losses that declare ``coarsens`` are computed over these k + 1 categories. The
    higher the temperature, the less probability the ``k`` classes hold.

    Ids take ``ceil(log2 classes)`` bits each; log-probabilities 16 (bfloat16: off by at most 1/512 of their size) or 8,
    in steps that are finer the more likely a class is; the tail 2 bytes. At 152,000 classes and ``k: 64`` that is 274
    or 214 bytes per item.

    Settings: ``k``, the number of stored classes; ``bits`` of each log-probability.
    Source: why plain top-k, without a tail, misleads a student: Anshumann et al. 2025, arXiv:2503.16870.
    """

    uses_temperature = True
    takes_factored = False

    def __init__(self, *, k: Annotated[int, Field(ge=1, le=2**31 - 1)] = 64, bits: Literal[8, 16] = 16) -> None:
        self.k = k
        self.bits = bits

    def shared(self, logits: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  no shared data
        """Return no tensors."""
        return {}

    def encode(self, logits: Tensor, *, temperature: float, seed: int) -> Encoded:  # noqa: ARG002  no draws
        """Return ids, log-probabilities and tail.

        Shapes: ``[n, classes]``.
        Raises: ``SettingError`` for logits with nan or +inf, or without any finite value.
        """
        require_known(logits)
        top = SparseLogits.top(logits, self.k, temperature)
        assert top.log_probs is not None
        assert top.tail is not None
        parts: dict[str, Tensor | Ragged] = {
            "ids": pack(top.ids, width_of(top.classes)),
            "tail": top.tail.clamp(min=-65504.0).half().where(top.tail > -torch.inf, -torch.inf),
        }
        if self.bits == 8:
            parts["codes"], parts["bounds"] = quantize(top.log_probs)
        else:
            parts["log_probs"] = top.log_probs.bfloat16()
        error = max(_apart(top.log_probs, self._log_probs(parts)), _apart(top.tail, part_of(parts, "tail")))
        return Encoded(parts, top.log_probs.float().exp().sum(-1), error)

    def decode(
        self,
        parts: Mapping[str, Tensor | Ragged],
        shared: Mapping[str, Tensor],  # noqa: ARG002  no shared data
        *,
        classes: int,
        temperature: float,
    ) -> SparseLogits:
        """Return the stored classes and the tail."""
        ids = unpack(part_of(parts, "ids"), min(self.k, classes), width_of(classes))
        tail = part_of(parts, "tail").float()
        return SparseLogits(ids, self._log_probs(parts), classes, tail, temperature=temperature)

    def _log_probs(self, parts: Mapping[str, Tensor | Ragged]) -> Tensor:
        if self.bits == 8:
            return restore(part_of(parts, "codes"), part_of(parts, "bounds"))
        return part_of(parts, "log_probs").float()


def _apart(given: Tensor, kept: Tensor) -> float:
    """Return the largest difference between logarithms of nonzero probabilities."""
    return float((given - kept).masked_fill(given == -torch.inf, 0.0).abs().max())
