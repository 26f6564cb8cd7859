"""Compare decoded logits with the originals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.testing.codec.sample import exact
from kdplug.testing.law import is_close

_SEEN = -87.0
"""Logarithm of the smallest normal float32 probability."""


def content(found: Any) -> Tensor:
    """Return each item's known content in float64: logits, or probabilities of classes (0 if unknown) and tail.

    Shapes: ``[items, classes]``, or ``[items, classes + 1]`` for ``SparseLogits``.
    """
    if not isinstance(found, SparseLogits):
        return exact(found)
    tail = torch.zeros(found.ids.shape[:-1]) if found.tail is None else found.tail.exp()
    known = torch.zeros(found.shape, dtype=torch.float64).scatter_add(-1, found.ids, _weights(found))
    return torch.cat([known, tail.double()[..., None]], -1)


def probabilities(found: Any, temperature: float) -> Tensor:
    """Return the probability of each class, 0 if unknown: float64 ``[items, classes]``."""
    return content(found)[..., :-1] if isinstance(found, SparseLogits) else (exact(found) / temperature).softmax(-1)


def same(one: Any, two: Any) -> bool:
    """Return whether two logits agree up to rounding."""
    return type(one) is type(two) and one.shape == two.shape and is_close(content(one), content(two), 1e-6)


def distance(found: Any, given: Any, temperature: float) -> float:
    """Return the largest difference: in nats, in hidden-state units, or in logits; ``inf`` for nan."""
    if isinstance(found, SparseLogits):
        return _nats(found, (exact(given) / temperature).log_softmax(-1))
    if _is_of_one_head(found, given):
        return _largest(found.hidden.double() - given.hidden.double())
    true, made = exact(given), exact(found)
    return _largest((made - true).masked_fill(~true.isfinite(), 0.0))


def slack(given: Any, temperature: float) -> float:
    """Return the tolerance for float32 rounding, or for half precision if half-precision factors are multiplied out."""
    true = exact(given)
    reach = _largest(true.masked_fill(~true.isfinite(), 0.0))
    precision = torch.finfo(given.hidden.dtype).eps if isinstance(given, FactoredLogits) else 0.0
    return 1e-5 + reach * max(3e-7, 2 * precision) / min(1.0, temperature)


def kept_classes(found: SparseLogits) -> Tensor:
    """Return which classes an item stores: bool ``[items, classes]``."""
    used = (_weights(found) > 0).double()
    return torch.zeros(found.shape, dtype=torch.float64).scatter_add(-1, found.ids, used) > 0


def _weights(found: SparseLogits) -> Tensor:
    if found.weights is not None:
        return found.weights.double()
    assert found.log_probs is not None
    return found.log_probs.double().exp()


def _nats(found: SparseLogits, true: Tensor) -> float:
    worst = 0.0
    if found.log_probs is not None:
        unused = None if found.weights is None else found.weights == 0
        worst = _apart(found.log_probs, true.gather(-1, found.ids), unused)
    if found.tail is not None:
        rest = true.scatter(-1, found.ids, -math.inf).logsumexp(-1)
        worst = max(worst, _apart(found.tail, rest, None))
    return worst


def _apart(found: Tensor, true: Tensor, unused: Tensor | None) -> float:
    """Compare only where probabilities are distinguishable from 0."""
    unseen = (found < _SEEN) & (true < _SEEN)
    off = (found.double() - true).masked_fill(unseen if unused is None else unseen | unused, 0.0)
    return _largest(off)


def _largest(off: Tensor) -> float:
    if not off.numel():
        return 0.0
    found = float(off.abs().max())
    return math.inf if math.isnan(found) else found


def _is_of_one_head(found: Any, given: Any) -> bool:
    if not isinstance(found, FactoredLogits) or not isinstance(given, FactoredLogits):
        return False
    factors = [(one.weight, one.bias) for one in (found, given)]
    return (
        found.hidden.shape == given.hidden.shape
        and (found.scale, found.softcap) == (given.scale, given.softcap)
        and torch.equal(factors[0][0], factors[1][0])
        and (found.bias is None) == (given.bias is None)
        and (found.bias is None or given.bias is None or torch.equal(found.bias, given.bias))
    )
