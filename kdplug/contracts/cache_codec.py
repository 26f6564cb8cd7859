"""Interface of teacher-cache codecs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class Ragged(NamedTuple):
    """A part in which each item has its own number of rows.

    Shapes: ``values`` ``[rows, …]``, in item order; ``counts`` ``[items]``, integers that sum to ``rows``.
    """

    values: Tensor
    counts: Tensor


class Encoded(NamedTuple):
    """Encoded logits of a batch of items.

    ``parts`` maps Python names to tensors whose first dimension is the items, or to ``Ragged``. Dtypes and other
    dimensions must be the same for all items. ``kept_mass`` is the teacher's probability, at the temperature, on each
    item's stored classes; set it if the codec drops classes. ``error`` is the largest rounding error: in nats for
    log-probabilities and the tail, in their own unit for hidden states, otherwise in logits.
    """

    parts: Mapping[str, Tensor | Ragged]
    kept_mass: Tensor | None = None
    error: float = 0.0


@runtime_checkable
class CacheCodec(Protocol):
    """Compresses per-item logits and reconstructs loss inputs.

    Any class with these members is a codec; it need not import kdplug. Its ``__init__`` takes settings, keyword-only.
    Items are encoded independently: encoding several items gives the encoding of each, concatenated part by part.
    ``decode`` receives the parts of any items in any order, possibly in another process. Random draws use a separate
    generator for each item of each batch; the same logits and seed always give the same parts.

    A codec raises ``SettingError`` for logits that it cannot store faithfully. Every codec must accept logits that are
    all equal.
    """

    @property
    def uses_temperature(self) -> bool:
        """Return whether the parts depend on the temperature, so that a cache serves one temperature only."""
        ...

    @property
    def takes_factored(self) -> bool:
        """Return whether ``encode`` takes ``FactoredLogits``. Otherwise the engine multiplies them out first."""
        ...

    def shared(self, logits: Any) -> Mapping[str, Tensor]:
        """Return data stored once for all items, usually none. ``logits`` ``[n, classes]`` are an arbitrary sample."""
        ...

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        """Encode ``logits`` ``[items, classes]``, at least one item.

        ``seed`` seeds random draws; each batch, head and chunk of a head has its own.
        """
        ...

    def decode(
        self, parts: Mapping[str, Tensor | Ragged], shared: Mapping[str, Tensor], *, classes: int, temperature: float
    ) -> Any:
        """Return logits ``[items, classes]`` on the parts' device: a tensor, ``SparseLogits`` or ``FactoredLogits``."""
        ...
