"""How a weight moves over a run, as a factor of the configured weight."""

from __future__ import annotations


def linear_decay(progress: float) -> float:
    """1 at the start of the run, 0 at its end, linear between. ``progress`` is held within [0, 1].

    Source: TextBrewer ``linear_decay_weight_scheduler``, arXiv:2002.12620.
    """
    return 1.0 - linear_growth(progress)


def linear_growth(progress: float) -> float:
    """0 at the start of the run, 1 at its end, linear between. ``progress`` is held within [0, 1].

    Source: TextBrewer ``linear_growth_weight_scheduler``, arXiv:2002.12620.
    """
    return min(max(progress, 0.0), 1.0)
