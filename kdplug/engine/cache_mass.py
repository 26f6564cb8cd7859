"""How much of the teacher's probability a cache keeps, at the temperature at which the loss reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.engine.cache_coding import Coding
from kdplug.engine.cache_tally import Tally
from kdplug.errors import KdplugError

_LEAST = 0.9
"""Below this mean most of what a high temperature is meant to show lies in the classes that are not kept."""

_CLASSES = 3


@dataclass(frozen=True, slots=True)
class KeptMass:
    """The teacher's probability at ``temperature`` on the classes that are known: the mean over items, and the least of an item."""

    temperature: float
    mean: float
    lowest: float

    @classmethod
    def of_cache(cls, coding: Coding | None, tally: Tally) -> KeptMass | None:
        """That of a cache whose codec leaves classes out; ``None`` for one that keeps all, or draws a sample of them."""
        if coding is None or tally.kept_mass is None or not leaves_out(decoded(coding)):
            return None
        return cls(coding.temperature, tally.kept_mass, tally.lowest)

    @classmethod
    def of_heads(cls, heads: Iterable[Any]) -> KeptMass | None:
        """That of logits that a teacher gives as ``SparseLogits`` itself; ``None`` where it does not."""
        found = [head for head in heads if leaves_out(head)]
        if not found:
            return None
        mass = torch.cat([head.log_probs.float().exp().sum(-1).flatten() for head in found])
        return cls(found[0].temperature, float(mass.mean()), float(mass.min())) if len(mass) else None

    @property
    def warning(self) -> str | None:
        """What is wrong where it is too little."""
        if self.mean >= _LEAST:
            return None
        return (
            f"the classes that are kept hold {self.mean:.3f} of the teacher's probability at temperature {self.temperature:g}; of "
            "all others the student learns only what they have together. Keep more classes, lower the temperature, or keep "
            "all of them (dense, hidden)"
        )

    def __str__(self) -> str:
        return f"kept mass {self.mean:.3f} at temperature {self.temperature:g} ({self.lowest:.3f} at least)"


def decoded(coding: Coding) -> Any:
    """What a codec gives back of one item whose logits are equal, which each codec can keep; ``None`` where it refuses that."""
    codec, one = coding.codec, torch.zeros(1, _CLASSES)
    logits: Any = FactoredLogits(torch.zeros(1, 1), torch.zeros(_CLASSES, 1)) if codec.takes_factored else one
    try:
        shared = codec.shared(logits)
        parts = codec.encode(logits, temperature=coding.temperature, seed=0).parts
        return codec.decode(parts, shared, classes=_CLASSES, temperature=coding.temperature)
    except KdplugError:
        return None


def leaves_out(logits: Any) -> bool:
    """Whether these name the likeliest classes and say at most what all others have together."""
    return isinstance(logits, SparseLogits) and logits.weights is None
