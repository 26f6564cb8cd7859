"""How well a language model predicts, over many batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdplug_tasks.batch import Batch
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.text.next_token import Logits, figures, shifted


@dataclass(slots=True)
class Perplexity:
    """What was predicted so far: ``nats`` in all, the tokens that came first, all tokens, and the bytes of text that they are."""

    nats: float = 0.0
    right: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, batch: Batch, logits: Logits, vocabulary: int | None) -> None:
        """What a model gave for a batch, of whose classes the first ``vocabulary`` are read."""
        found = figures(*shifted(logits, batch.targets["labels"], vocabulary))
        self.nats, self.right, self.tokens = self.nats + found[0], self.right + found[1], self.tokens + found[2]
        if (sizes := batch.targets.get("sizes")) is not None:
            self.bytes += int(sizes[:, 1:][batch.targets["labels"][:, 1:] != NO_LABEL].sum())

    @property
    def figures(self) -> dict[str, float]:
        """Perplexity, the loss that it is the exponential of in nats per token, and the share of tokens that come first."""
        loss = self.nats / self.tokens
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": self.right / self.tokens}

    @property
    def bits_per_byte(self) -> float:
        """All nats in bits, for each byte of text; no number where there is no text."""
        return self.nats / math.log(2) / (self.bytes or math.nan)
