"""Logits that have not been multiplied out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdplug.contracts.item import keep, moved, rows_of
from kdplug.errors import OutputsError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FactoredLogits:
    """``softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap)``, kept as its factors.

    It stands wherever logits do. A loss on logits is then worked out over pieces of the items, and ``[*items, classes]`` is
    never held. Without ``scale`` and ``softcap`` nothing is scaled or capped. The order is that of Cohere's ``logit_scale``,
    Granite's ``1 / logits_scaling`` and Gemma's ``final_logit_softcapping``, which all act on what the head gave.

    Shapes: ``hidden`` ``[*items, width]``, ``weight`` ``[classes, width]``, ``bias`` ``[classes]``; scale and softcap numbers.
    Raises: ``OutputsError`` for what is no tensor of floating point, and for a scale or softcap that is no finite number, a
    softcap that is not above 0; ``ShapeError`` where the factors do not fit each other.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        _check_factors(self)
        for name in ("scale", "softcap"):
            _check_number(name, getattr(self, name))
        if self.softcap is not None and self.softcap <= 0:
            raise OutputsError(f"must be above 0, got {self.softcap!r}", field="softcap")

    @property
    def shape(self) -> torch.Size:
        """That of the logits, ``[*items, classes]``."""
        import torch

        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.hidden.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factors: hidden, weight and, where there is one, bias."""
        return (self.hidden, self.weight) if self.bias is None else (self.hidden, self.weight, self.bias)

    def dense(self) -> Tensor:
        """The logits, multiplied out: ``[*items, classes]``, in the precision that a linear layer would give here."""
        from torch.nn.functional import linear

        logits = linear(self.hidden, self.weight, self.bias)
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def detach(self) -> FactoredLogits:
        """The same without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def at(self, items: Tensor) -> FactoredLogits:
        """Those of some items alone, ``[n, classes]``.

        Shapes: ``items`` is a bool mask ``[*items]``, or int64 places ``[n]`` among the items in a row.
        Raises: ``ShapeError`` for a mask of another shape.
        """
        return replace(self, hidden=keep(self.hidden, rows_of(items, self.hidden.shape[:-1]), 1))

    def first(self, classes: int) -> FactoredLogits:
        """Those of the first ``classes`` classes alone: the head without the rows that pad it.

        Raises: ``ShapeError`` where there are fewer.
        """
        if not 0 < classes <= self.classes:
            raise ShapeError(f"there are {self.classes} classes, so not the first {classes}", field="weight")
        if classes == self.classes:
            return self
        bias = None if self.bias is None else self.bias[:classes]
        return replace(self, weight=self.weight[:classes], bias=bias)

    def to(self, device: torch.device | str) -> FactoredLogits:
        """The same on another device."""
        hidden, weight = moved(self.hidden, device), moved(self.weight, device)
        return replace(self, hidden=hidden, weight=weight, bias=None if self.bias is None else moved(self.bias, device))


def _check_factors(factors: FactoredLogits) -> None:
    from torch import Tensor

    for name, dims in (("hidden", None), ("weight", 2), ("bias", 1)):
        value = getattr(factors, name)
        if value is None and name == "bias":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise OutputsError(f"must be a tensor of floating point, got {kind}", field=name)
        if dims is None and not value.dim():
            raise ShapeError("must be [*items, width], got a scalar", field=name)
        if dims is not None and value.dim() != dims:
            form = "[classes, width]" if dims == 2 else "[classes]"
            raise ShapeError(f"must be {form}, got {list(value.shape)}", field=name)
    hidden, weight, bias = factors.hidden, factors.weight, factors.bias
    if hidden.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} differ in width: "
            f"{hidden.shape[-1]} against {weight.shape[1]}. weight is [classes, width], as nn.Linear keeps it",
            field="weight",
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{list(bias.shape)} does not fit weight {list(weight.shape)}: one for each class", field="bias"
        )


def _check_number(name: str, value: object) -> None:
    import math

    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise OutputsError(f"must be a finite number, got {value!r}", field=name)
