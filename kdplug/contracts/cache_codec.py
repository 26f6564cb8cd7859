"""How a teacher cache keeps logits: what a codec takes, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class Ragged(NamedTuple):
    """A part of which each item has its own number of rows.

    Shapes: ``values`` ``[rows, …]``, those of the first item first; ``counts`` ``[items]``, whole numbers that add up to ``rows``.
    """

    values: Tensor
    counts: Tensor


class Encoded(NamedTuple):
    """What is kept of some items' logits.

    ``parts`` are tensors by name whose first dimension is the items, or ``Ragged``; their names are Python names, their dtypes and
    other dimensions the same for all items. ``kept_mass`` is the teacher's probability on the classes that are kept, at the
    temperature, for each item, where a codec leaves some out. ``error`` is the largest difference that rounding made: in nats for
    log-probabilities and the tail, in their own unit for hidden states, and else in that of the logits.
    """

    parts: Mapping[str, Tensor | Ragged]
    kept_mass: Tensor | None = None
    error: float = 0.0


@runtime_checkable
class CacheCodec(Protocol):
    """Makes the logits of items into something smaller, and that into what a loss can be computed of.

    A class that offers these names is a codec; it need not import kdplug. Its ``__init__`` takes settings, keyword-only. Items
    are independent of each other: what is kept of several is what is kept of each, joined part by part, and ``decode`` gets the
    parts of any items in any order, in another process than the one that encoded. What is drawn at random is drawn for each item of
    a batch anew, from a generator of its own; the same logits and the same seed always give the same parts.

    What it cannot keep rightly it refuses with a ``SettingError``, save logits that are all equal: those every codec can keep.
    """

    @property
    def uses_temperature(self) -> bool:
        """Whether what is kept depends on the temperature, so that a cache serves one temperature only."""
        ...

    @property
    def takes_factored(self) -> bool:
        """Whether ``encode`` takes ``FactoredLogits``. Otherwise they are multiplied out before."""
        ...

    def shared(self, logits: Any) -> Mapping[str, Tensor]:
        """What is kept once for all items; ``logits`` ``[n, classes]`` are some of them, and which does not matter. Usually nothing."""
        ...

    def encode(self, logits: Any, *, temperature: float, seed: int) -> Encoded:
        """What to keep of ``logits`` ``[items, classes]``, at least one item.

        ``seed`` is for what is drawn at random; each batch, head and piece of a head has its own.
        """
        ...

    def decode(
        self, parts: Mapping[str, Tensor | Ragged], shared: Mapping[str, Tensor], *, classes: int, temperature: float
    ) -> Any:
        """Logits ``[items, classes]`` as a tensor, ``SparseLogits`` or ``FactoredLogits``, on the device of the parts."""
        ...
