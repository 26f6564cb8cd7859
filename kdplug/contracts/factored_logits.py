"""Logits stored as two factors, hidden states and the weight of a head, instead of their product."""

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
    """``softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap)``, stored as its factors.

    Accepted wherever logits are. A loss on logits is then computed in chunks of items, and ``[*items, classes]`` is
    never materialized. ``scale`` is Cohere's ``logit_scale`` or Granite's ``1 / logits_scaling``, and ``softcap``
    Gemma's ``final_logit_softcapping``; both are optional.

    Shapes: ``hidden`` ``[*items, width]``, ``weight`` ``[classes, width]``, ``bias`` ``[classes]``; scale and softcap
    numbers.
    Raises: ``OutputsError`` unless the factors are floating-point tensors, scale and softcap finite numbers and softcap
    above 0; ``ShapeError`` if the factors do not match each other.
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
        """Shape of the logits, ``[*items, classes]``."""
        import torch

        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self.hidden.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factors: hidden, weight and, if given, bias."""
        return (self.hidden, self.weight) if self.bias is None else (self.hidden, self.weight, self.bias)

    def dense(self) -> Tensor:
        """Return the logits ``[*items, classes]``. Their dtype is that of a linear layer, so it depends on autocast."""
        from torch.nn.functional import linear

        logits = linear(self.hidden, self.weight, self.bias)
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def detach(self) -> FactoredLogits:
        """Return a copy without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def at(self, items: Tensor) -> FactoredLogits:
        """Return the selected items, ``[n, classes]``.

        Shapes: ``items`` is a bool mask ``[*items]`` or int64 indices ``[n]`` into the flattened items.
        Raises: ``ShapeError`` for a mask of another shape.
        """
        return replace(self, hidden=keep(self.hidden, rows_of(items, self.hidden.shape[:-1]), 1))

    def first(self, classes: int) -> FactoredLogits:
        """Return the logits of the first ``classes`` classes: the head without its padding rows.

        Raises: ``ShapeError`` if there are fewer.
        """
        if not 0 < classes <= self.classes:
            raise ShapeError(f"cannot select the first {classes} of {self.classes} classes", field="weight")
        if classes == self.classes:
            return self
        bias = None if self.bias is None else self.bias[:classes]
        return replace(self, weight=self.weight[:classes], bias=bias)

    def to(self, device: torch.device | str) -> FactoredLogits:
        """Return a copy on another device."""
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
            raise OutputsError(f"must be a floating-point tensor, got {kind}", field=name)
        if dims is None and not value.dim():
            raise ShapeError("must be [*items, width], got a scalar", field=name)
        if dims is not None and value.dim() != dims:
            form = "[classes, width]" if dims == 2 else "[classes]"
            raise ShapeError(f"must be {form}, got {list(value.shape)}", field=name)
    hidden, weight, bias = factors.hidden, factors.weight, factors.bias
    if hidden.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} differ in width: "
            f"{hidden.shape[-1]} against {weight.shape[1]}. weight is [classes, width], as in nn.Linear",
            field="weight",
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{list(bias.shape)} does not match weight {list(weight.shape)}, which needs one value per class",
            field="bias",
        )


def _check_number(name: str, value: object) -> None:
    import math

    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise OutputsError(f"must be a finite number, got {value!r}", field=name)
