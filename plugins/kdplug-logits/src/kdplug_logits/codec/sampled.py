"""Teacher logits stored as classes that are sampled from the teacher's distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdplug import Encoded, Ragged, SparseLogits
from kdplug_logits.codec.packing import pack, require_known, unpack, width_of

_PRIME = 1_000_003
_SEEDS = 1 << 63


class Sampled:
    """Stores classes drawn from the teacher's distribution at the recipe's temperature, with their counts: an unbiased
    estimate of that distribution, so that the gradient of the loss is right in expectation.

    ``rounds`` draws give far fewer distinct classes, about 12 of 50 on text. Each takes the bits of its id and of its
    count, 3 bytes at 152,000 classes and 50 rounds. The draws are stratified, one in each of ``rounds`` equal shares of
    the distribution: the estimate stays unbiased and its variance is never larger.

    Settings: ``rounds``, draws per item; ``seed`` of the draws.
    Source: Anshumann et al. 2025 (Sparse Logit Sampling), arXiv:2503.16870, drawing from the teacher
    itself.
    """

    uses_temperature = True
    takes_factored = False

    def __init__(
        self, *, rounds: Annotated[int, Field(ge=1, le=255)] = 50, seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    ) -> None:
        self.rounds = rounds
        self.seed = seed

    def shared(self, logits: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  no shared data
        """Return no tensors."""
        return {}

    def encode(self, logits: Tensor, *, temperature: float, seed: int) -> Encoded:
        """Return the drawn classes, each once, with their counts.

        Shapes: ``[n, classes]``.
        Raises: ``SettingError`` for logits with nan or +inf, or without any finite value.
        """
        require_known(logits)
        classes = logits.shape[-1]
        probs = (logits.detach().double() / temperature).softmax(-1)
        drawn = self._draw(probs, seed) + classes * torch.arange(len(logits), device=logits.device).unsqueeze(1)
        found, times = drawn.reshape(-1).unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        items, ids = found // classes, found % classes
        kept = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        kept.index_add_(0, items, probs[items, ids])
        counts = items.bincount(minlength=len(logits)).to(torch.uint8)
        values = pack((((times - 1) << width_of(classes)) | ids).unsqueeze(1), self._width(classes))
        return Encoded({"drawn": Ragged(values, counts)}, kept.float())

    def decode(
        self,
        parts: Mapping[str, Tensor | Ragged],
        shared: Mapping[str, Tensor],  # noqa: ARG002  no shared data
        *,
        classes: int,
        temperature: float,
    ) -> SparseLogits:
        """Return the sample, with weights that sum to 1."""
        drawn = parts["drawn"]
        assert isinstance(drawn, Ragged)
        values = unpack(drawn.values, 1, self._width(classes)).squeeze(1)
        counts, bits = drawn.counts.long(), width_of(classes)
        used = torch.arange(int(counts.max()) if len(counts) else 0, device=counts.device) < counts.unsqueeze(1)
        ids = torch.zeros(used.shape, dtype=torch.int64, device=counts.device)
        weights = torch.zeros(used.shape, device=counts.device)
        ids[used] = values & (1 << bits) - 1
        weights[used] = ((values >> bits) + 1).float() / self.rounds
        return SparseLogits(ids, None, classes, weights=weights, temperature=temperature)

    def _width(self, classes: int) -> int:
        return width_of(classes) + width_of(self.rounds)

    def _draw(self, probs: Tensor, seed: int) -> Tensor:
        """Draw classes ``[n, rounds]`` in rising order: one from each stratum of the cumulative distribution."""
        generator = torch.Generator().manual_seed((self.seed * _PRIME + seed) % _SEEDS)
        size = len(probs), self.rounds
        within = torch.rand(size, generator=generator, dtype=torch.float64, device=generator.device).to(probs.device)
        places = (torch.arange(self.rounds, device=probs.device) + within) / self.rounds
        cumulated = probs.cumsum(-1)
        return torch.searchsorted(cumulated / cumulated[:, -1:], places, right=True).clamp_max(probs.shape[-1] - 1)
