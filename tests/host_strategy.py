"""Hypothesis strategies of the host's tests."""

from __future__ import annotations

from fake_install import distribution
from hypothesis import strategies as st

from kdplug.host.metadata import Distribution

_DISTS = ["kdplug-presets", "kdplug-a", "Kdplug_B", "kdplug.c", "aaa", "zzz-losses"]
_NAMES = ["ce", "dkd", "hidden_mse", "x-1", "x_2", "Lp"]


def _distributions(name: str) -> st.SearchStrategy[Distribution]:
    offered = st.lists(st.sampled_from(_NAMES), unique=True, max_size=4)
    return offered.map(lambda names: distribution(name, losses=dict.fromkeys(names, f"m:{name}")))


def installations() -> st.SearchStrategy[list[Distribution]]:
    """Distributions with overlapping entries, each at most once, one of them first-party."""
    chosen = st.lists(st.sampled_from(_DISTS), unique=True, max_size=5)
    return chosen.flatmap(lambda names: st.tuples(*map(_distributions, names))).map(list)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
DATA = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
"""What JSON can hold."""
