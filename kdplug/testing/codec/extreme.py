"""Laws on what a cache codec makes of unusual logits. It may refuse most of them, with an error of kdplug's."""

from __future__ import annotations

import math

import torch

from kdplug.testing.codec.case import CodecCase
from kdplug.testing.codec.content import content, probabilities
from kdplug.testing.codec.sample import at, each, ruled_out, tensors_of, with_item
from kdplug.testing.law import broken

_MANY = 70_000
"""More classes than 16 bits can number."""


class CodecExtremeLaws(CodecCase):
    """What a cache keeps is right, or it is not kept."""

    def test_logits_of_ten_thousand_are_kept_or_refused(self) -> None:
        """For: ``exp(x)``, or float16 beyond 65504, of which infinities come back."""
        codec = self.codec()
        for size in (1e4, 1e5):
            trip = self.trip_or_refusal(codec, self.given(codec, size=size), f"logits of {size:g}")
            if trip is not None:
                self.check(trip, f"logits of {size:g}")

    def test_a_class_that_the_teacher_rules_out_gets_nothing(self) -> None:
        """For: ``-inf`` in the range of an item, which makes nan of all others; one that becomes an ordinary logit."""
        codec = self.codec()
        given = ruled_out(self.given(codec), 2)
        trip = self.trip_or_refusal(codec, given, "classes with logit -inf")
        if trip is None:
            return
        found = probabilities(trip.found, trip.temperature)
        if not bool(found.isfinite().all()):
            broken("classes with logit -inf come back as logits of which there is no distribution")
        if float(found[:, 2:].max()) > 1e-6:
            broken(f"classes with logit -inf come back with a probability of {float(found[:, 2:].max()):.3g}")
        self.check(trip, "classes with logit -inf")

    def test_logits_that_are_no_numbers_do_not_become_numbers(self) -> None:
        """For: nan, which ``topk`` puts first and a whole number cannot hold, learned from as if the teacher had said it."""
        codec = self.codec()
        for value in (math.nan, math.inf):
            trip = self.trip_or_refusal(codec, with_item(self.given(codec), 1, value), f"logits of {value}")
            if trip is None:
                continue
            if all(bool(tensor.isfinite().all()) for tensor in tensors_of(at(trip.found, [1])).values()):
                broken(f"an item with a logit {value} comes back as if it had none: refuse it with a SettingError")

    def test_few_classes_and_equal_logits_are_kept(self) -> None:
        """For: more classes kept than there are; a range of 0 that is divided by."""
        codec = self.codec()
        for classes in (1, 2, 3):
            self.check(self.trip(codec, self.given(codec, classes=classes)), f"logits of {classes} classes")
        for value in (0.0, 4.0):
            given = each(self.given(codec), lambda tensor, value=value: torch.full_like(tensor, value))
            self.check(self.trip(codec, given), "logits that are all equal")

    def test_many_classes_keep_their_numbers(self) -> None:
        """For: ids in 16 bits, of which class 65,536 is class 0; in float16 or bfloat16, which skip whole numbers from 2,049 and 257."""
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
                broken(f"of {_MANY:,} classes the likeliest, {_MANY - 1:,}, comes back as {found:,}")


def _peaked(given: torch.Tensor, place: int) -> torch.Tensor:
    given = given.clone()
    given[:, place] = 20.0
    return given
