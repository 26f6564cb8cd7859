"""The state of every random number generator that a run may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def random_state(generators: tuple[torch.Generator, ...] = ()) -> dict[str, Any]:
    """The state of Python's, NumPy's (where it is imported) and torch's global generators, and of ``generators``.

    Plain data and tensors, fit for an archive.
    """
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": _from_numpy(numpy.random.get_state()) if numpy is not None else None,
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "generators": [generator.get_state() for generator in generators],
    }


def restore_random_state(state: dict[str, Any], generators: tuple[torch.Generator, ...] = ()) -> None:
    """Put every generator back to where ``random_state`` found it."""
    random.setstate(state["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and state["numpy"] is not None:
        name, key, position, has_gauss, gauss = state["numpy"]
        numpy.random.set_state((name, numpy.asarray(key, dtype=numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


@contextmanager
def random_state_kept(generators: tuple[torch.Generator, ...] = ()) -> Iterator[None]:
    """Restore the random state after the block, so that what it draws changes no run."""
    state = random_state(generators)
    try:
        yield
    finally:
        restore_random_state(state, generators)


def _from_numpy(state: Any) -> tuple[Any, ...]:
    name, key, position, has_gauss, gauss = state
    return name, [int(word) for word in key], int(position), int(has_gauss), float(gauss)
