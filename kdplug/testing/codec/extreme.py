"""Tests of a cache codec on unusual logits, most of which a codec may reject with a kdplug error."""

from __future__ import annotations

import math

import torch

from kdplug.testing.codec.case import CodecCase
from kdplug.testing.codec.content import content, probabilities
from kdplug.testing.codec.sample import at, each, ruled_out, tensors_of, with_item
from kdplug.testing.law import advise, broken

_MANY = 70_000
"""More classes than 16 bits can index."""


class CodecExtremeLaws(CodecCase):
    """A cache stores the right value or rejects it."""

    @advise("Store them in float32, or raise a SettingError in encode")
    def test_logits_of_ten_thousand_are_kept_or_refused(self) -> None:
        """Catches ``exp(x)``, or float16 beyond 65504, which decode to infinities."""
        codec = self.codec()
        for size in (1e4, 1e5):
            trip = self.trip_or_refusal(codec, self.given(codec, size=size), f"logits of {size:g}")
            if trip is not None:
                self.check(trip, f"logits of {size:g}")

    @advise("Decode them with a probability of 0, or raise a SettingError in encode")
    def test_a_class_that_the_teacher_rules_out_gets_nothing(self) -> None:
        """Catches ``-inf`` in an item's range, which turns its other logits into nan; ``-inf`` decoded as a finite logit."""
        codec = self.codec()
        given = ruled_out(self.given(codec), 2)
        trip = self.trip_or_refusal(codec, given, "classes with logit -inf")
        if trip is None:
            return
        found = probabilities(trip.found, trip.temperature)
        if not bool(found.isfinite().all()):
            broken("classes with logit -inf are decoded as logits that form no distribution")
        if float(found[:, 2:].max()) > 1e-6:
            broken(f"classes with logit -inf are decoded with a probability of {float(found[:, 2:].max()):.3g}")
        self.check(trip, "classes with logit -inf")

    @advise("Raise a SettingError in encode")
    def test_logits_that_are_no_numbers_do_not_become_numbers(self) -> None:
        """Catches nan, which ``topk`` sorts first and integers cannot hold, stored as if it were a valid teacher logit."""
        codec = self.codec()
        for value in (math.nan, math.inf):
            trip = self.trip_or_refusal(codec, with_item(self.given(codec), 1, value), f"logits of {value}")
            if trip is None:
                continue
            if all(bool(tensor.isfinite().all()) for tensor in tensors_of(at(trip.found, [1])).values()):
                broken(f"an item with a logit {value} is decoded as if it were valid")

    @advise("Store no more classes than logits.shape[-1], and clamp a range before dividing by it")
    def test_few_classes_and_equal_logits_are_kept(self) -> None:
        """Catches more stored classes than exist; a division by a range of 0."""
        codec = self.codec()
        for classes in (1, 2, 3):
            self.check(self.trip(codec, self.given(codec, classes=classes)), f"logits of {classes} classes")
        for value in (0.0, 4.0):
            given = each(self.given(codec), lambda tensor, value=value: torch.full_like(tensor, value))
            self.check(self.trip(codec, given), "equal logits")

    @advise("Store ids in 32 bits, or raise a SettingError in encode")
    def test_many_classes_keep_their_numbers(self) -> None:
        """Catches ids in 16 bits, where class 65,536 becomes 0; in float16 or bfloat16, exact only to 2,048 and 256."""
        codec = self.codec()
        given = self.given(codec, 2, _MANY, size=1.0)
        given = _peaked(given, _MANY - 1) if isinstance(given, torch.Tensor) else given
        trip = self.trip_or_refusal(codec, given, f"{_MANY:,} classes")
        if trip is None:
            return
        self.check(trip, f"{_MANY:,} classes")
        if isinstance(given, torch.Tensor):
            found = int(content(trip.found)[..., :_MANY].argmax(-1)[0])
            if found != _MANY - 1:
                broken(f"the most likely of {_MANY:,} classes, {_MANY - 1:,}, is decoded as {found:,}")


def _peaked(given: torch.Tensor, place: int) -> torch.Tensor:
    given = given.clone()
    given[:, place] = 20.0
    return given
