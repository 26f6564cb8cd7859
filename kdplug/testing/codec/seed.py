"""Laws on what a cache codec draws."""

from __future__ import annotations

import random

import torch

from kdplug.contracts.cache_codec import Encoded
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.testing.codec.case import TEMPERATURE, CodecCase
from kdplug.testing.codec.content import probabilities
from kdplug.testing.codec.sample import at, parts_at, tensors_of
from kdplug.testing.law import broken, where
from kdplug.testing.sample import seeded

_SIGMAS = 5.0


class CodecSeedLaws(CodecCase):
    """A capture that was interrupted goes on with the same bits."""

    def test_the_same_seed_keeps_the_same(self) -> None:
        """For: draws from the global generator; a state that the batches before have left."""
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
                "keeps something else of the same logits when asked again: it depends on more than logits, temperature, seed"
            )

    def test_global_generators_stay_where_they_are(self) -> None:
        """For: ``torch.manual_seed(seed)``, after which the dropout of every step is that of the first."""
        codec = self.codec()
        given = self.given(codec)
        before = torch.get_rng_state(), random.getstate()
        self.trip(codec, given)
        if not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate():
            broken("moves a global generator: draw from torch.Generator().manual_seed(seed)")

    @where(lambda laws: not laws.draws)
    def test_nothing_is_drawn_unless_it_is_said(self) -> None:
        """For: a codec that draws, and was not declared to: the laws on items would hold it to what it cannot keep."""
        codec = self.codec()
        given = self.given(codec)
        if not _same(self.keep(codec, given, seed=0), self.keep(codec, given, seed=1)):
            broken("keeps something else with another seed: declare draws = True")

    @where(lambda laws: laws.draws)
    def test_each_item_and_each_seed_has_draws_of_its_own(self) -> None:
        """For: a generator that is seeded alike for every batch, or for every item: errors then add up and do not even out."""
        codec = self.codec()
        given = at(self.given(codec), [0] * 50)
        kept = self.keep(codec, given)
        if _same(kept, self.keep(codec, given, seed=1)):
            broken("was declared to draw, and keeps the same with another seed")
        first = tensors_of(parts_at(kept.parts, [0]))
        if all(_equal(first, tensors_of(parts_at(kept.parts, [place]))) for place in range(1, 50)):
            broken("draws the same for equal items of a batch")

    @where(lambda laws: laws.draws)
    def test_a_sample_is_the_teachers_distribution_on_average(self) -> None:
        """For: draws at temperature 1; classes that were drawn twice and count once; weights that are not divided by the draws."""
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
            broken(
                f"a class of probability {float(true[place]):.4f} has weight {float(found.mean(0)[place]):.4f} on average"
            )


def _same(one: Encoded, two: Encoded) -> bool:
    return _equal(tensors_of(one.parts), tensors_of(two.parts))


def _equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
