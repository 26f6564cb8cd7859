"""Tests of the random numbers that a cache codec draws."""

from __future__ import annotations

import random

import torch

from kdplug.contracts.cache_codec import Encoded
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.testing.codec.case import TEMPERATURE, CodecCase
from kdplug.testing.codec.content import probabilities
from kdplug.testing.codec.sample import at, parts_at, tensors_of
from kdplug.testing.law import advise, broken, where
from kdplug.testing.sample import seeded

_SIGMAS = 5.0


class CodecSeedLaws(CodecCase):
    """An interrupted cache build resumes with identical bits."""

    @advise("Draw from torch.Generator().manual_seed(seed), and keep no state of earlier calls")
    def test_the_same_seed_keeps_the_same(self) -> None:
        """Catches draws from the global generator; state left by earlier batches."""
        codec, other = self.codec(), self.codec()
        given = self.given(codec)
        with seeded(1):
            first = self.keep(codec, given)
            self.keep(codec, self.given(codec, seed=1))
            again = self.keep(codec, given)
        with seeded(2):
            fresh = self.keep(other, given)
        if not _same(first, again) or not _same(first, fresh):
            broken(
                "encodes the same logits differently on a second call: it depends on more than logits, temperature "
                "and seed"
            )

    @advise("Draw from torch.Generator().manual_seed(seed)")
    def test_global_generators_stay_where_they_are(self) -> None:
        """Catches ``torch.manual_seed(seed)``, after which every step has the same dropout."""
        codec = self.codec()
        given = self.given(codec)
        before = torch.get_rng_state(), random.getstate()
        self.trip(codec, given)
        if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
            broken("advances a global generator")

    @advise("Declare draws = True")
    @where(lambda laws: not laws.draws)
    def test_nothing_is_drawn_unless_it_is_said(self) -> None:
        """Catches an undeclared random codec, for which the laws for items would fail."""
        codec = self.codec()
        given = self.given(codec)
        if not _same(self.keep(codec, given, seed=0), self.keep(codec, given, seed=1)):
            broken("encodes differently with another seed")

    @advise("Draw for all items in turn from one torch.Generator().manual_seed(seed), or do not declare draws")
    @where(lambda laws: laws.draws)
    def test_each_item_and_each_seed_has_draws_of_its_own(self) -> None:
        """Catches the same seed for every batch, or for every item: errors then add up instead of cancelling."""
        codec = self.codec()
        given = at(self.given(codec), [0] * 50)
        kept = self.keep(codec, given)
        if _same(kept, self.keep(codec, given, seed=1)):
            broken("is declared to draw, but encodes the same with another seed")
        first = tensors_of(parts_at(kept.parts, [0]))
        if all(_equal(first, tensors_of(parts_at(kept.parts, [place]))) for place in range(1, 50)):
            broken("makes the same draws for equal items of a batch")

    @advise("Draw from softmax(logits / temperature), and set the weight of each class to its share of the draws")
    @where(lambda laws: laws.draws)
    def test_a_sample_is_the_teachers_distribution_on_average(self) -> None:
        """Catches draws at temperature 1; repeated classes counted once; weights not divided by the number of draws."""
        codec = self.codec()
        one = self.given(codec, 1)
        given = at(one, [0] * 4000)
        trip = self.trip(codec, given)
        if not isinstance(trip.found, SparseLogits) or trip.found.weights is None:
            return
        found, true = probabilities(trip.found, TEMPERATURE), probabilities(one, TEMPERATURE)[0]
        off = (found.mean(0) - true).abs() - _SIGMAS * found.std(0) / len(found) ** 0.5
        if float(off.max()) > 1e-3:
            place = int(off.argmax())
            broken(f"a class of probability {float(true[place]):.4f} has mean weight {float(found.mean(0)[place]):.4f}")


def _same(one: Encoded, two: Encoded) -> bool:
    return _equal(tensors_of(one.parts), tensors_of(two.parts))


def _equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
