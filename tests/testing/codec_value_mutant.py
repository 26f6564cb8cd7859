"""Defects of cache codecs: of what comes back from them, and what they say of it."""

from __future__ import annotations

import math

import torch
from testing.codec_model import Drawn, DrawnLaws, Factors, FactorsLaws, Likely, LikelyLaws, Rounded, RoundedLaws
from testing.mutant import mutant

from kdplug import Ragged, SparseLogits


@mutant(RoundedLaws, "test_it_gives_back_logits_of_the_items", "got list")
class LogitsInAList(Rounded):
    def decode(self, parts, shared, **options):
        return [super().decode(parts, shared, **options)]


@mutant(RoundedLaws, "test_it_gives_back_logits_of_the_items", "decode must return logits [6, 11], got [11, 6]")
class Transposed(Rounded):
    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options).T


@mutant(RoundedLaws, "test_it_gives_back_logits_of_the_items", "must return floating-point logits, got torch.uint8")
class TheCodesThemselves(Rounded):
    def decode(self, parts, shared, **options):
        return parts["codes"]


@mutant(RoundedLaws, "test_it_gives_back_logits_of_the_items", "decode returns non-finite logits")
class TheLogarithmOfARoundedShare(Rounded):
    def decode(self, parts, shared, **options):
        return parts["low"] + parts["codes"].float().log() * parts["step"]


@mutant(DrawnLaws, "test_it_gives_back_logits_of_the_items", "decode returns negative weights")
class WeightsBelowZero(Drawn):
    def decode(self, parts, shared, **options):
        found = super().decode(parts, shared, **options)
        return SparseLogits(found.ids, None, found.classes, weights=found.weights - 0.1, temperature=found.temperature)


@mutant(LikelyLaws, "test_it_gives_back_logits_of_the_items", "decode returns a class twice for an item")
class OneClassTwice(Likely):
    def decode(self, parts, shared, **options):
        ids = parts["ids"].clone()
        ids[:, 2] = ids[:, 1]
        return super().decode({**parts, "ids": ids}, shared, **options)


@mutant(RoundedLaws, "test_it_is_off_by_no_more_than_it_says", "but encode declares 0")
class AnErrorThatIsNotSaid(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits, **options)._replace(error=0.0)


@mutant(RoundedLaws, "test_it_is_off_by_no_more_than_it_says", "are decoded with an error of")
class AnErrorBeforeTheLastRounding(Rounded):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(parts={**kept.parts, "step": kept.parts["step"].half()})


@mutant(RoundedLaws, "test_it_is_off_by_no_more_than_it_says", "error must be a number of at least 0, got tensor(")
class AnErrorForEachItem(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits, **options)._replace(error=torch.zeros(len(logits)))


@mutant(RoundedLaws, "test_it_is_off_by_no_more_than_it_says", "are decoded with an error of")
class ClassesShiftedByOne(Rounded):
    def decode(self, parts, shared, **options):
        return super().decode({**parts, "codes": parts["codes"].roll(1, dims=1)}, shared, **options)


class Packed(Likely):
    """``Likely`` with its three ids of up to 16 classes in one number."""

    width = 4

    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        shift = self.width * torch.arange(3)
        return kept._replace(parts={**kept.parts, "ids": (kept.parts["ids"].long() << shift).sum(-1)})

    def decode(self, parts, shared, *, classes, temperature):
        ids = (parts["ids"].unsqueeze(-1) >> (self.width * torch.arange(3))) & 2**self.width - 1
        return super().decode({**parts, "ids": ids}, shared, classes=classes, temperature=temperature)


@mutant(LikelyLaws, "test_it_is_off_by_no_more_than_it_says", "are decoded with an error of")
class OneBitTooFew(Packed):
    width = 3


@mutant(LikelyLaws, "test_it_is_off_by_no_more_than_it_says", "are decoded with an error of")
class ATailOfItsOwnRounding(Likely):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(parts={**kept.parts, "tail": kept.parts["tail"].bfloat16().float()})


@mutant(
    LikelyLaws,
    "test_kept_mass_is_the_teachers_probability_on_the_classes_that_are_kept",
    "but the teacher's probability of those classes",
)
class TheMassAtTemperatureOne(Likely):
    def encode(self, logits, *, temperature, seed):
        kept = super().encode(logits, temperature=temperature, seed=seed)
        return kept._replace(kept_mass=logits.softmax(-1).topk(3).values.sum(-1))


@mutant(LikelyLaws, "test_kept_mass_is_the_teachers_probability_on_the_classes_that_are_kept", "returns no kept_mass")
class NoMass(Likely):
    def encode(self, logits, **options):
        return super().encode(logits, **options)._replace(kept_mass=None)


@mutant(
    LikelyLaws, "test_kept_mass_is_the_teachers_probability_on_the_classes_that_are_kept", "for each of the 6 items"
)
class TheMeanMass(Likely):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(kept_mass=kept.kept_mass.mean())


@mutant(
    LikelyLaws,
    "test_kept_mass_is_the_teachers_probability_on_the_classes_that_are_kept",
    "kept_mass must be a probability",
)
class TheLogarithmOfTheMass(Likely):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(kept_mass=kept.kept_mass.log())


@mutant(
    RoundedLaws,
    "test_the_temperature_matters_only_where_it_is_said",
    "logits at temperature 5 are decoded with an error of",
)
class DividedByTheTemperature(Rounded):
    def encode(self, logits, *, temperature, seed):
        return super().encode(logits / temperature, temperature=temperature, seed=seed)


@mutant(
    RoundedLaws,
    "test_the_temperature_matters_only_where_it_is_said",
    "part 'low' depends on the temperature: uses_temperature must be True",
)
class DividedAndMultipliedAgain(Rounded):
    def encode(self, logits, *, temperature, seed):
        kept = super().encode(logits / temperature, temperature=temperature, seed=seed)
        return kept._replace(error=temperature * kept.error)

    def decode(self, parts, shared, *, classes, temperature):
        return temperature * super().decode(parts, shared, classes=classes, temperature=temperature)


@mutant(
    LikelyLaws, "test_the_temperature_matters_only_where_it_is_said", "decodes to logits at temperature 1 instead of 5"
)
class ATemperatureThatIsForgotten(Likely):
    def decode(self, parts, shared, *, classes, temperature):
        return super().decode(parts, shared, classes=classes, temperature=1.0)


@mutant(LikelyLaws, "test_half_precision_loses_no_more_than_it_says", "logits in bfloat16 are decoded with an error of")
class ASoftmaxInHalfPrecision(Likely):
    def encode(self, logits, *, temperature, seed):
        tempered = (logits / temperature).log_softmax(-1)
        return super().encode(temperature * tempered.float(), temperature=temperature, seed=seed)


@mutant(LikelyLaws, "test_half_precision_loses_no_more_than_it_says", "kept_mass of item")
class AMassInHalfPrecision(Likely):
    def encode(self, logits, *, temperature, seed):
        kept = super().encode(logits, temperature=temperature, seed=seed)
        top = (logits / temperature).softmax(-1).topk(3).values
        return kept._replace(kept_mass=top.sum(-1))


@mutant(RoundedLaws, "test_half_precision_loses_no_more_than_it_says", "logits in bfloat16 raise TypeError")
class ByWayOfNumpy(Rounded):
    def encode(self, logits, **options):
        return super().encode(torch.from_numpy(logits.numpy()), **options)


@mutant(
    FactorsLaws, "test_logits_in_factors_are_what_they_multiply_out_to", "with a soft cap are decoded with an error of"
)
class ASoftCapThatIsForgotten(Factors):
    def shared(self, logits):
        return {name: one for name, one in super().shared(logits).items() if name != "softcap"}


@mutant(
    FactorsLaws,
    "test_logits_in_factors_are_what_they_multiply_out_to",
    "dense logits raise AttributeError",
)
class FactorsAndNothingElse(Factors):
    def encode(self, logits, **options):
        _ = logits.hidden
        return super().encode(logits, **options)


@mutant(
    RoundedLaws, "test_logits_of_ten_thousand_are_kept_or_refused", "logits of 100000 are decoded with an error of inf"
)
class InHalfPrecision(Rounded):
    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options).half().float()

    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(error=kept.error + 50.0)


@mutant(RoundedLaws, "test_a_class_that_the_teacher_rules_out_gets_nothing", "that form no distribution")
class ARangeToMinusInfinity(Rounded):
    def encode(self, logits, **options):
        kept = super().encode(logits.nan_to_num(), **options)
        return kept._replace(parts={**kept.parts, "low": logits.amin(-1, keepdim=True)})


@mutant(RoundedLaws, "test_a_class_that_the_teacher_rules_out_gets_nothing", "are decoded with a probability of")
class RuledOutBecomesTheLowest(Rounded):
    def encode(self, logits, **options):
        finite = logits.masked_fill(logits == -math.inf, math.inf).amin(-1, keepdim=True)
        return super().encode(logits.maximum(finite), **options)


@mutant(RoundedLaws, "test_a_class_that_the_teacher_rules_out_gets_nothing", "classes with logit -inf raise ValueError")
class AnErrorOfAnother(Rounded):
    def encode(self, logits, **options):
        if not bool(logits.isfinite().all()):
            raise ValueError("not finite")
        return super().encode(logits, **options)


@mutant(
    RoundedLaws,
    "test_logits_that_are_no_numbers_do_not_become_numbers",
    "an item with a logit nan is decoded as if it were valid",
)
class NanBecomesZero(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits.nan_to_num(), **options)


@mutant(LikelyLaws, "test_few_classes_and_equal_logits_are_kept", "selected index k out of range")
class MoreThanThereAre(Likely):
    def encode(self, logits, **options):
        _ = logits.topk(3)
        return super().encode(logits, **options)


@mutant(RoundedLaws, "test_few_classes_and_equal_logits_are_kept", "are decoded with an error of inf")
class ARangeOfZero(Rounded):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        low, high = self.reach(logits.float())
        return kept._replace(parts={**kept.parts, "step": (kept.parts["step"] * (high - low)) / (high - low)})


@mutant(LikelyLaws, "test_many_classes_keep_their_numbers", "70,000 classes")
class IdsInSixteenBits(Likely):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(parts={**kept.parts, "ids": kept.parts["ids"].short()})

    def decode(self, parts, shared, **options):
        return super().decode({**parts, "ids": parts["ids"].int() & 0xFFFF}, shared, **options)


@mutant(
    DrawnLaws, "test_many_classes_keep_their_numbers", "70,000 classes raise OutputsError: ids: must be in [0, 70000)"
)
class IdsInBfloat16(Drawn):
    def decode(self, parts, shared, **options):
        rows, counts = parts["drawn"]
        return super().decode({"drawn": Ragged(rows.bfloat16().int(), counts)}, shared, **options)


@mutant(
    DrawnLaws, "test_many_classes_keep_their_numbers", "the most likely of 70,000 classes, 69,999, is decoded as 4,463"
)
class IdsModuloSixteenBits(Drawn):
    def decode(self, parts, shared, **options):
        rows, counts = parts["drawn"]
        return super().decode({"drawn": Ragged(rows & 0xFFFF, counts)}, shared, **options)
