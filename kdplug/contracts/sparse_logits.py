"""Teacher logits of a few classes per item."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kdplug.contracts.item import keep, moved, rows_of
from kdplug.errors import OutputsError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SparseLogits:
    """A teacher's distribution at ``temperature``, known at K of its ``classes`` classes per item.

    ``log_probs`` are natural logarithms of probabilities over all classes. There are three forms:

    * with ``tail``, the log of the total mass of all other classes: a top-k and tail cache. The K classes of an item
      are distinct. Losses that declare ``coarsens`` are computed over K + 1 categories.
    * with ``weights`` instead, a sample: Σ weight · f(class) over the K is an unbiased estimate of the teacher's
      mean of f. A class may repeat; unused slots have weight 0. ``log_probs`` may be ``None``.
    * with neither, the other classes are unknown.

    The last two are for losses that request ``teacher_sparse``. ``-inf`` means probability 0, in ``tail`` too. No part
    requires grad.

    With a ``tail``, ``tails`` holds the tail at other temperatures, so that losses at several temperatures can read one
    object: ``at_temperature`` returns the distribution at one of them.

    Shapes: ``ids`` int64 ``[*items, K]``; ``log_probs`` and ``weights`` ``[*items, K]``; each tail ``[*items]``.
    Raises: ``OutputsError`` for a wrong type, an inconsistent combination of parts, and a temperature or number of
    classes that is not above 0; ``ShapeError`` if the parts do not match each other.
    """

    ids: Tensor
    log_probs: Tensor | None
    classes: int
    tail: Tensor | None = None
    weights: Tensor | None = None
    temperature: float = 1.0
    tails: Mapping[float, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ids(self)
        for name, shape in (("log_probs", self.ids.shape), ("weights", self.ids.shape), ("tail", self.ids.shape[:-1])):
            _check_part(name, getattr(self, name), shape)
        if self.log_probs is None and self.weights is None:
            raise OutputsError("is required unless weights are given", field="log_probs")
        if self.tail is not None and self.weights is not None:
            raise OutputsError(
                "cannot be combined with weights: a sample has weights, whereas a top-k cache has a tail", field="tail"
            )
        if not 0 < self.temperature < math.inf:
            raise OutputsError(f"must be above 0 and finite, got {self.temperature!r}", field="temperature")
        if self.tails and (self.tail is None or self.log_probs is None):
            raise OutputsError("require a tail and log_probs", field="tails")
        for temperature, tail in self.tails.items():
            if not 0 < temperature < math.inf or _is_same(temperature, self.temperature):
                raise OutputsError(
                    f"must be at temperatures above 0 other than {self.temperature:g}, got {temperature!r}",
                    field="tails",
                )
            _check_part("tail", tail, self.ids.shape[:-1])

    @classmethod
    def top(cls, logits: Tensor, k: int, temperature: float | Sequence[float] = 1.0) -> SparseLogits:
        """Keep the ``k`` largest of ``logits`` ``[*items, classes]``, or all if there are fewer, and compute the tail.

        Several temperatures give a tail for each; ``log_probs`` are those at the lowest.
        The tail is summed over the other classes, not computed as 1 minus the top k, so a small tail keeps its
        precision.
        """
        import torch

        base, *others = distinct([temperature] if isinstance(temperature, (int, float)) else temperature)
        with torch.no_grad():
            wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
            log_probs = (wide / base).log_softmax(-1)
            found, ids = log_probs.topk(min(k, logits.shape[-1]), dim=-1)
            tail = log_probs.scatter_(-1, ids, -torch.inf).logsumexp(-1)
        tails = {other: tail_of(logits, ids, other) for other in others}
        return cls(ids, found, logits.shape[-1], tail, temperature=base, tails=tails)

    @property
    def shape(self) -> torch.Size:
        """Shape of the logits that this represents, ``[*items, classes]``."""
        import torch

        return torch.Size((*self.ids.shape[:-1], self.classes))

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        return self.ids.device

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures at which the distribution is known, in rising order."""
        return tuple(sorted((self.temperature, *self.tails)))

    def is_known_at(self, temperature: float) -> bool:
        """Return whether ``at_temperature`` can return the distribution at this temperature."""
        return any(_is_same(temperature, one) for one in self.temperatures)

    def at_temperature(self, temperature: float) -> SparseLogits:
        """Return the distribution at one of ``temperatures``.

        The K classes keep their order: ``p_T(i)`` is proportional to ``p(i)^(temperature / T)``, and the tail at T determines how much
        probability they share.

        Raises: ``OutputsError`` for another temperature.
        """
        if _is_same(temperature, self.temperature):
            return self
        tail = next((tail for one, tail in self.tails.items() if _is_same(temperature, one)), None)
        if tail is None or self.log_probs is None:
            known = " and ".join(f"{one:g}" for one in self.temperatures)
            raise OutputsError(
                f"are SparseLogits known only at temperature {known}, not at {temperature:g}", field="logits"
            )
        import torch

        wide = self.log_probs * (self.temperature / temperature)
        kept = (-tail.expm1()).clamp_min(torch.finfo(tail.dtype).tiny).log()
        log_probs = wide - wide.logsumexp(-1, keepdim=True) + kept.unsqueeze(-1)
        return replace(self, log_probs=log_probs, tail=tail, temperature=temperature, tails={})

    def detach(self) -> SparseLogits:
        """Return self: no part requires grad."""
        return self

    def at(self, items: Tensor) -> SparseLogits:
        """Return the selected items, ``[n, classes]``.

        Shapes: ``items`` is a bool mask ``[*items]`` or int64 indices ``[n]`` into the flattened items.
        Raises: ``ShapeError`` for a mask of another shape.
        """
        dims = self.ids.dim() - 1
        rows = rows_of(items, self.ids.shape[:-1])
        return self.map_parts(lambda part: keep(part, rows, part.dim() - dims))

    def to(self, device: torch.device | str) -> SparseLogits:
        """Return a copy on another device."""
        return self.map_parts(lambda part: moved(part, device))

    def map_parts(self, change: Callable[[Tensor], Tensor]) -> SparseLogits:
        """Return a copy with ``change`` applied to every part that is given."""
        return replace(
            self,
            ids=change(self.ids),
            log_probs=None if self.log_probs is None else change(self.log_probs),
            tail=None if self.tail is None else change(self.tail),
            weights=None if self.weights is None else change(self.weights),
            tails={temperature: change(tail) for temperature, tail in self.tails.items()},
        )


def tail_of(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return the log of the total probability at ``temperature`` of all classes but ``ids``.

    Both a tail near 0 and one near -inf keep their precision: the smaller of the two masses is summed directly.

    Shapes: logits ``[*items, classes]``, ids ``[*items, K]`` to ``[*items]``, in float32 or wider.
    """
    import torch

    with torch.no_grad():
        wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        log_probs = (wide / temperature).log_softmax(-1)
        kept = log_probs.gather(-1, ids).logsumexp(-1).exp()
        tail = log_probs.scatter_(-1, ids, -torch.inf).logsumexp(-1)
        return torch.where(kept < 0.5, (-kept).log1p(), tail)


def distinct(temperatures: Iterable[float]) -> list[float]:
    """Return the different temperatures in rising order. Of those that round to one, the lowest is kept."""
    found: list[float] = []
    for temperature in sorted(temperatures):
        if not found or not _is_same(temperature, found[-1]):
            found.append(temperature)
    return found


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)


def _check_ids(sparse: SparseLogits) -> None:
    import torch

    ids, classes = sparse.ids, sparse.classes
    if not isinstance(ids, torch.Tensor) or ids.dtype is not torch.int64:
        kind = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise OutputsError(f"must be an int64 tensor, got {kind}", field="ids")
    if not ids.dim():
        raise ShapeError("must be [*items, K], got a scalar", field="ids")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise OutputsError(f"must be a whole number above 0, got {classes!r}", field="classes")
    if ids.device.type == "cpu" and ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < classes):
        raise OutputsError(
            f"must be in [0, {classes}), got {int(ids.min())} to {int(ids.max())}: classes is the width of the logits",
            field="ids",
        )


def _check_part(name: str, value: object, shape: torch.Size) -> None:
    from torch import Tensor

    if value is None:
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise OutputsError(f"must be a floating-point tensor, got {kind}", field=name)
    if value.requires_grad:
        raise OutputsError(
            "requires grad, but teacher outputs must not. Detach the tensor, or run the teacher under torch.no_grad()",
            field=name,
        )
    if value.shape != shape:
        form = "[*items]" if name == "tail" else "[*items, K]"
        raise ShapeError(f"must be {form} = {list(shape)} to match ids, got {list(value.shape)}", field=name)
