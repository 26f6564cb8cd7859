"""Defects of cache codecs: of how items and draws depend on each other."""

from __future__ import annotations

import random

import torch
from testing.codec_model import Changed, Drawn, DrawnLaws, Likely, LikelyLaws, Rounded, RoundedLaws
from testing.mutant import mutant

from kdplug import Encoded, Ragged, SettingError


@mutant(
    RoundedLaws,
    "test_what_is_kept_of_several_is_what_is_kept_of_each",
    "part 'codes' of item 0 differs if the item is encoded alone",
)
class OneRangeForTheWholeBatch(Rounded):
    def reach(self, logits):
        return tuple(end.expand(len(logits), 1) for end in logits.aminmax())


@mutant(RoundedLaws, "test_what_is_kept_of_several_is_what_is_kept_of_each", "of item 0 differs")
class RowsSortedBySize(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits[logits.amax(-1).argsort()], **options)


@mutant(
    DrawnLaws,
    "test_what_is_kept_of_an_item_does_not_depend_on_the_others",
    "differs if the item is encoded with other items",
)
class DrawnFromTheMeanOfTheBatch(Drawn):
    def draw(self, probs, seed):
        return super().draw((probs + probs.mean(0)) / 2, seed)


@mutant(RoundedLaws, "test_items_are_read_in_any_order", "parts of 6 items decode to logits [5, 11]")
class TheLastItemIsDropped(Rounded):
    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options)[:-1]


@mutant(RoundedLaws, "test_items_are_read_in_any_order", "do not get their own logits")
class TheDifferenceToTheItemBefore(Changed):
    def change(self, parts):
        return {**parts, "low": parts["low"].diff(dim=0, prepend=torch.zeros(1, 1))}

    def decode(self, parts, shared, **options):
        return super().decode({**parts, "low": parts["low"].cumsum(0)}, shared, **options)


@mutant(DrawnLaws, "test_items_are_read_in_any_order", "do not get their own logits")
class RowsDealtOutEvenly(Drawn):
    def decode(self, parts, shared, **options):
        rows, counts = parts["drawn"]
        each = torch.full_like(counts, len(rows) // max(1, len(counts)))
        each[:1] += len(rows) - int(each.sum())
        return super().decode({"drawn": Ragged(rows, each)}, shared, **options)


@mutant(
    RoundedLaws,
    "test_a_batch_of_which_nothing_counts_can_be_kept",
    "rejects logits that are all 0 (logits do not differ)",
)
class FlatItemsAreRefused(Rounded):
    def encode(self, logits, **options):
        if bool((logits.amax(-1) == logits.amin(-1)).any()):
            raise SettingError("logits do not differ")
        return super().encode(logits, **options)


@mutant(
    RoundedLaws,
    "test_a_batch_of_which_nothing_counts_can_be_kept",
    "parts of an empty batch must decode to logits [0, 11]",
)
class OneItemAtLeast(Rounded):
    def decode(self, parts, shared, *, classes, temperature):
        if not len(parts["codes"]):
            return torch.zeros(1, classes, device=parts["low"].device)
        return super().decode(parts, shared, classes=classes, temperature=temperature)


@mutant(DrawnLaws, "test_the_same_seed_keeps_the_same", "it depends on more than logits, temperature and seed")
class GlobalDraws(Drawn):
    def draw(self, probs, seed):
        return probs.multinomial(self.rounds, replacement=True)


@mutant(RoundedLaws, "test_the_same_seed_keeps_the_same", "encodes the same logits differently on a second call")
class ARunningMean(Rounded):
    mean = 0.0

    def reach(self, logits):
        self.mean = 0.5 * self.mean + 0.5 * float(logits.min())
        low, high = logits.aminmax(dim=-1, keepdim=True)
        return low.clamp_max(self.mean), high


@mutant(DrawnLaws, "test_global_generators_stay_where_they_are", "advances a global generator")
class TheGlobalGeneratorIsSeeded(Drawn):
    def draw(self, probs, seed):
        torch.manual_seed(seed)
        return probs.multinomial(self.rounds, replacement=True)


@mutant(RoundedLaws, "test_global_generators_stay_where_they_are", "advances a global generator")
class PythonsGenerator(Rounded):
    def encode(self, logits, **options):
        random.random()
        return super().encode(logits, **options)


@mutant(LikelyLaws, "test_nothing_is_drawn_unless_it_is_said", "encodes differently with another seed")
class UndeclaredDraws(Drawn):
    pass


@mutant(DrawnLaws, "test_each_item_and_each_seed_has_draws_of_its_own", "encodes the same with another seed")
class OneSeedForAllBatches(Drawn):
    def draw(self, probs, seed):
        return super().draw(probs, 0)


@mutant(DrawnLaws, "test_each_item_and_each_seed_has_draws_of_its_own", "encodes the same with another seed")
class NothingIsDrawn(Likely):
    pass


@mutant(
    DrawnLaws, "test_each_item_and_each_seed_has_draws_of_its_own", "makes the same draws for equal items of a batch"
)
class OneDrawForAllItems(Drawn):
    def draw(self, probs, seed):
        return torch.cat([super(OneDrawForAllItems, self).draw(one, seed) for one in probs.split(1)])


@mutant(DrawnLaws, "test_a_sample_is_the_teachers_distribution_on_average", "has mean weight")
class DrawnAtAnotherTemperature(Drawn):
    def encode(self, logits, *, temperature, seed):
        return super().encode(logits, temperature=1.0, seed=seed)


@mutant(DrawnLaws, "test_a_sample_is_the_teachers_distribution_on_average", "has mean weight")
class EveryClassCountsOnce(Drawn):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        rows, counts = kept.parts["drawn"]
        rows[:, 1] = 1
        return Encoded({"drawn": Ragged(rows, counts)}, kept.kept_mass)
