"""Cache codecs for tests: one that loses nothing, and one whose items are of unequal sizes."""

from __future__ import annotations

import torch

import kdplug


class Whole:
    """Every logit as it is, minus what it keeps once for all."""

    uses_temperature = False
    takes_factored = False

    def __init__(self, *, shift: float = 0.0) -> None:
        self.shift = shift

    def shared(self, logits):
        return {"shift": torch.tensor([self.shift], dtype=torch.float64)}

    def encode(self, logits, *, temperature, seed):
        assert len(logits)
        return kdplug.Encoded({"all": logits - self.shift})

    def decode(self, parts, shared, *, classes, temperature):
        return parts["all"] + shared["shift"]


class Positive:
    """The classes of positive logit and no others; of the rest, 0."""

    uses_temperature = True
    takes_factored = False

    def __init__(self) -> None:
        """Nothing to set."""

    def shared(self, logits):
        return {}

    def encode(self, logits, *, temperature, seed):
        items, ids = (logits > 0).nonzero().unbind(1)
        counts = items.bincount(minlength=len(logits)).to(torch.int16)
        values = torch.stack([ids.double(), logits[items, ids].double()], 1)
        mass = (logits.softmax(-1) * (logits > 0)).sum(-1)
        return kdplug.Encoded({"pairs": kdplug.Ragged(values, counts), "sure": logits.argmax(-1)}, mass, 0.5)

    def decode(self, parts, shared, *, classes, temperature):
        pairs = parts["pairs"]
        items = torch.arange(len(pairs.counts)).repeat_interleave(pairs.counts.long())
        found = torch.zeros(len(pairs.counts), classes, dtype=torch.float64)
        return found.index_put((items, pairs.values[:, 0].long()), pairs.values[:, 1])


def register():
    """Offer both in this process."""
    kdplug.cache_codecs.register("whole")(Whole)
    kdplug.cache_codecs.register("positive")(Positive)
