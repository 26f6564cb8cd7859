"""A cache codec under test: its author's declarations, and helpers for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from kdplug.contracts.cache_codec import Encoded, Ragged
from kdplug.errors import KdplugError
from kdplug.testing.codec.content import distance, slack
from kdplug.testing.codec.sample import make_logits
from kdplug.testing.law import Laws, broken

TEMPERATURE = 2.0


class Trip(NamedTuple):
    """The given logits, their encoding, and the decoded logits."""

    given: Any
    kept: Encoded
    found: Any
    temperature: float


class CodecCase(Laws):
    """Declarations of a cache codec's author, in addition to the entry."""

    draws: ClassVar[bool] = False
    """Declares that encoding uses random draws, from the seed."""

    items: ClassVar[int] = 6
    """Number of items."""

    classes: ClassVar[int] = 11
    """Number of classes, unless a law needs another."""

    @classmethod
    def kind_of(cls) -> str:
        return "cache_codecs"

    def first_law(self) -> tuple[str, Callable[[], object]]:
        codec = self.codec()
        return "test_it_gives_back_logits_of_the_items", lambda: self.trip(codec, self.given(codec))

    def codec(self) -> Any:
        """Build a fresh codec."""
        return self.build().target

    def given(self, codec: Any, items: int | None = None, classes: int | None = None, **options: Any) -> Any:
        """Make logits in the form that the codec takes, as factors if it can."""
        return make_logits(items or self.items, classes or self.classes, factored=codec.takes_factored, **options)

    def keep(self, codec: Any, given: Any, temperature: float = TEMPERATURE, seed: int = 0) -> Encoded:
        """Encode logits."""
        found = codec.encode(given, temperature=temperature, seed=seed)
        if not isinstance(found, Encoded):
            broken(f"encode must return kdplug.Encoded, got {type(found).__name__}")
        return found

    def shared(self, codec: Any, given: Any) -> dict[str, Tensor]:
        """Return the data stored once for all items, without gradient, as the engine stores it."""
        return {name: tensor.detach() for name, tensor in codec.shared(given).items()}

    def read(self, codec: Any, parts: Any, shared: Any, temperature: float = TEMPERATURE, classes: int = 0) -> Any:
        """Decode parts to logits."""
        return codec.decode(parts, shared, classes=classes or self.classes, temperature=temperature)

    def trip(self, codec: Any, given: Any, temperature: float = TEMPERATURE, seed: int = 0) -> Trip:
        """Encode and decode."""
        return self._back(codec, given, self.keep(codec, given, temperature, seed), temperature)

    def trip_or_refusal(self, codec: Any, given: Any, what: str) -> Trip | None:
        """Encode and decode, or return ``None`` if the codec rejects the logits (``what``) with a kdplug error."""
        try:
            try:
                kept = self.keep(codec, given)
            except KdplugError:
                return None
            return self._back(codec, given, kept, TEMPERATURE)
        except Exception as error:
            broken(f"{what} raise {type(error).__name__}: {error}")

    def _back(self, codec: Any, given: Any, kept: Encoded, temperature: float) -> Trip:
        shared = self.shared(codec, given)
        return Trip(given, kept, self.read(codec, kept.parts, shared, temperature, given.shape[-1]), temperature)

    def check(self, trip: Trip, what: str) -> None:
        """Check that decoding returns logits of the given items, within the declared error."""
        if tuple(trip.found.shape) != tuple(trip.given.shape):
            broken(f"{what} [{_sizes(trip.given)}] are decoded as [{_sizes(trip.found)}]")
        if self.is_whole(trip):
            off = distance(trip.found, trip.given, trip.temperature)
            if off > trip.kept.error * 1.001 + slack(trip.given, trip.temperature):
                broken(f"{what} are decoded with an error of {off:.3g}, but encode declares {trip.kept.error:.3g}")

    @staticmethod
    def is_whole(trip: Trip) -> bool:
        """Return whether every decoded number corresponds to a given one, so that their difference is an error."""
        return not isinstance(trip.found, Tensor) or trip.kept.kept_mass is None


def form_of(part: Any) -> str:
    """Describe what all items must have in common."""
    if isinstance(part, Ragged):
        return f"Ragged({form_of(part.values)}, {form_of(part.counts)})"
    return f"{str(part.dtype).removeprefix('torch.')} {['items' if not place else n for place, n in enumerate(part.shape)]}"


def _sizes(logits: Any) -> str:
    return ", ".join(map(str, logits.shape))
