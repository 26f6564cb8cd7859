"""Compute the share of the teacher's probability that is on the classes that a codec stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits, tail_of
from kdplug.engine.cache.coding import Coding
from kdplug.engine.cache.shard import CodingStats
from kdplug.errors import KdplugError

_LEAST = 0.9
"""Below this mean kept mass, most of the information that a high temperature adds is in the discarded classes."""

_CLASSES = 3


@dataclass(frozen=True, slots=True)
class KeptMass:
    """The teacher's probability mass at ``temperature`` on the stored classes: mean over items, and minimum.

    Of several temperatures it is the highest, at which the mass is smallest.
    """

    temperature: float
    mean: float
    lowest: float

    @classmethod
    def of_cache(cls, coding: Coding | None, tally: CodingStats) -> KeptMass | None:
        """Return the kept mass of a cache whose codec drops classes; ``None`` if it keeps all, or samples them."""
        if coding is None or tally.kept_mass is None or not leaves_out(decoded(coding)):
            return None
        return cls(coding.highest, tally.kept_mass, tally.lowest)

    @classmethod
    def of_heads(cls, heads: Iterable[Any]) -> KeptMass | None:
        """Return the kept mass of ``SparseLogits`` returned by a teacher; ``None`` if there are none."""
        found = [head for head in heads if leaves_out(head)]
        if not found:
            return None
        heads = [head.at_temperature(head.temperatures[-1]) for head in found]
        mass = torch.cat([head.log_probs.float().exp().sum(-1).flatten() for head in heads])
        return cls(heads[0].temperature, float(mass.mean()), float(mass.min())) if len(mass) else None

    @property
    def warning(self) -> str | None:
        """A warning if the kept mass is too small, otherwise ``None``."""
        if self.mean >= _LEAST:
            return None
        return (
            f"the stored classes hold {self.mean:.3f} of the teacher's probability at temperature "
            f"{self.temperature:g}; the student learns only the total probability of the other classes. Keep more classes, "
            "lower the temperature, or use the codec dense, which keeps all classes"
        )

    def __str__(self) -> str:
        return f"kept mass {self.mean:.3f} at temperature {self.temperature:g} (minimum {self.lowest:.3f})"


def decoded(coding: Coding) -> Any:
    """Return what a codec decodes for one item with equal logits, which every codec can store; ``None`` if rejected."""
    codec, one = coding.codec, torch.zeros(1, _CLASSES)
    logits: Any = FactoredLogits(torch.zeros(1, 1), torch.zeros(_CLASSES, 1)) if codec.takes_factored else one
    try:
        shared = codec.shared(logits)
        parts = codec.encode(logits, temperature=coding.temperature, seed=0).parts
        found = codec.decode(parts, shared, classes=_CLASSES, temperature=coding.temperature)
    except KdplugError:
        return None
    if not isinstance(found, SparseLogits) or found.tail is None:
        return found
    return replace(found, tails={other: tail_of(one, found.ids, other) for other in coding.others})


def leaves_out(logits: Any) -> bool:
    """Return whether these are top classes with at most the total probability of the rest, as opposed to samples."""
    return isinstance(logits, SparseLogits) and logits.weights is None
