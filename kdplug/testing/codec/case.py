"""A cache codec under test: what its author declares, and how the laws call it."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from kdplug.contracts.cache_codec import Encoded, Ragged
from kdplug.errors import KdplugError
from kdplug.testing.codec.content import distance, slack
from kdplug.testing.codec.sample import make_logits
from kdplug.testing.law import Laws, broken

TEMPERATURE = 2.0


class Trip(NamedTuple):
    """What was given, what was kept of it, and the logits that came back."""

    given: Any
    kept: Encoded
    found: Any
    temperature: float


class CodecCase(Laws):
    """What the author of a cache codec declares about it, beside its entry."""

    draws: ClassVar[bool] = False
    """Declares: what is kept is drawn at random, by the seed."""

    items: ClassVar[int] = 6
    """How many items it is tried with."""

    classes: ClassVar[int] = 11
    """How many classes the logits have, where a law does not need others."""

    @classmethod
    def kind_of(cls) -> str:
        return "cache_codecs"

    def codec(self) -> Any:
        """A fresh codec."""
        return self.build().target

    def given(self, codec: Any, items: int | None = None, classes: int | None = None, **options: Any) -> Any:
        """Logits in the form that the codec takes, in factors if it can."""
        return make_logits(items or self.items, classes or self.classes, factored=codec.takes_factored, **options)

    def keep(self, codec: Any, given: Any, temperature: float = TEMPERATURE, seed: int = 0) -> Encoded:
        """What is kept of ordinary logits."""
        found = codec.encode(given, temperature=temperature, seed=seed)
        if not isinstance(found, Encoded):
            broken(f"encode must return kdplug.Encoded, and returned {type(found).__name__}")
        return found

    def shared(self, codec: Any, given: Any) -> dict[str, Tensor]:
        """What is kept once for all, without gradient, as the engine keeps it."""
        return {name: tensor.detach() for name, tensor in codec.shared(given).items()}

    def read(self, codec: Any, parts: Any, shared: Any, temperature: float = TEMPERATURE, classes: int = 0) -> Any:
        """The logits that come back of parts."""
        return codec.decode(parts, shared, classes=classes or self.classes, temperature=temperature)

    def trip(self, codec: Any, given: Any, temperature: float = TEMPERATURE, seed: int = 0) -> Trip:
        """There and back."""
        return self._back(codec, given, self.keep(codec, given, temperature, seed), temperature)

    def trip_or_refusal(self, codec: Any, given: Any, what: str) -> Trip | None:
        """There and back, or ``None`` where the codec refuses to keep ``what`` is given with an error of kdplug's."""
        try:
            try:
                kept = self.keep(codec, given)
            except KdplugError:
                return None
            return self._back(codec, given, kept, TEMPERATURE)
        except Exception as error:
            broken(
                f"{what} end in {type(error).__name__}: {error}. Keep them, or let encode refuse them with a SettingError"
            )

    def _back(self, codec: Any, given: Any, kept: Encoded, temperature: float) -> Trip:
        shared = self.shared(codec, given)
        return Trip(given, kept, self.read(codec, kept.parts, shared, temperature, given.shape[-1]), temperature)

    def check(self, trip: Trip, what: str) -> None:
        """What comes back are logits of the items that were given, and no further from them than the codec says."""
        if tuple(trip.found.shape) != tuple(trip.given.shape):
            broken(f"{what} [{_sizes(trip.given)}] come back as [{_sizes(trip.found)}]")
        if self.is_whole(trip):
            off = distance(trip.found, trip.given, trip.temperature)
            if off > trip.kept.error * 1.001 + slack(trip.given, trip.temperature):
                broken(f"{what} come back off by {off:.3g}, and the error that encode says is {trip.kept.error:.3g}")

    @staticmethod
    def is_whole(trip: Trip) -> bool:
        """Whether every number that comes back stands for one that was given, so that their difference is an error."""
        return not isinstance(trip.found, Tensor) or trip.kept.kept_mass is None


def form_of(part: Any) -> str:
    """What all items have to have in common, in words."""
    if isinstance(part, Ragged):
        return f"Ragged({form_of(part.values)}, {form_of(part.counts)})"
    return f"{str(part.dtype).removeprefix('torch.')} {['items' if not place else n for place, n in enumerate(part.shape)]}"


def _sizes(logits: Any) -> str:
    return ", ".join(map(str, logits.shape))
