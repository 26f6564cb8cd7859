"""Advice for cache codecs, followed."""

from __future__ import annotations

import math

import torch
from testing import codec_item_mutant, codec_mutant, codec_value_mutant
from testing.advice import followed, undone
from testing.codec_model import Drawn, DrawnLaws, Likely, LikelyLaws, Rounded
from testing.specimen import laws_of

from kdplug import Encoded, SettingError

ALL_NAMES = "Define every member of kdplug.CacheCodec"
ONE_FORM = "Use one dtype and width for all batches, or kdplug.Ragged"
ALL_PARTS = "Return everything that decode needs as parts, or from shared"
IN_PLACE = "Use x - y instead of x.sub_(y), or clone first"
OWN_LOGITS = "Compute the parts of each item from its own logits"
OWN_PARTS = "Decode each item from its own parts, and split ragged rows by their counts"
NOTHING = "Accept logits that are all 0, and decode an empty batch to empty logits"
FROM_SEED = "Draw from torch.Generator().manual_seed(seed)"
IN_TURN = "Draw for all items in turn from one torch.Generator().manual_seed(seed), or do not declare draws"
SHARE = "Draw from softmax(logits / temperature), and set the weight of each class to its share of the draws"
ERROR = (
    "Set error to the largest difference between the given and the decoded logits, as a Python number. Correct decode "
    "if this difference is large"
)
MASS = "Return for each item the sum of softmax(logits / temperature) over its stored classes"
UNDIVIDED = (
    "Store logits that are not divided by the temperature, or set uses_temperature = True and decode at the temperature "
    "that decode gets"
)
FACTORS = "Store bias, scale and softcap with the weight, and store dense logits or raise a SettingError in encode"
RULED_OUT = "Decode them with a probability of 0, or raise a SettingError in encode"
LARGE = "Store them in float32, or raise a SettingError in encode"
FEW = "Store no more classes than logits.shape[-1], and clamp a range before dividing by it"
IDS = "Store ids in 32 bits, or raise a SettingError in encode"
ONCE = (
    "Return from shared only what settings or the teacher's head determine, and everything else as parts of the items"
)

followed("WithoutTwoNames", ALL_NAMES)(Rounded)
followed("OneBitTooFew", ERROR)(codec_value_mutant.Packed)
undone(
    AFlagThatIsAMethod="use a class attribute or a property",
    PartsAlone="encode must return kdplug.Encoded",
    NothingAtAll="return a mapping with at least one tensor",
    ANameWithAHyphen="must have a Python identifier as its name",
    AList="must be a tensor or kdplug.Ragged",
    ClassesFirst="its first dimension must be the 6 items",
    ANumberKeptOnce="must be a tensor",
    CountsInABiasedByte="count the rows of each item",
    ADtypeForEachBatch=ONE_FORM,
    PaddedToTheWidestItem=ONE_FORM,
    AStepThatIsRemembered=ALL_PARTS,
    ARangeThatGrows=ALL_PARTS,
    OneRangeForTheWholeBatch=OWN_LOGITS,
    RowsSortedBySize="return items in their order",
    DrawnFromTheMeanOfTheBatch=OWN_LOGITS,
    TheLastItemIsDropped=OWN_PARTS,
    TheDifferenceToTheItemBefore=OWN_PARTS,
    RowsDealtOutEvenly=OWN_PARTS,
    FlatItemsAreRefused=NOTHING,
    OneItemAtLeast=NOTHING,
    GlobalDraws=f"{FROM_SEED}, and keep no state of earlier calls",
    ARunningMean=f"{FROM_SEED}, and keep no state of earlier calls",
    TheGlobalGeneratorIsSeeded=FROM_SEED,
    OneSeedForAllBatches=IN_TURN,
    OneDrawForAllItems=IN_TURN,
    DrawnAtAnotherTemperature=SHARE,
    EveryClassCountsOnce=SHARE,
    LogitsInAList="must return a tensor, SparseLogits or FactoredLogits",
    Transposed="decode must return logits [6, 11]",
    TheCodesThemselves="convert codes to logits",
    WeightsBelowZero="return each class's share of the draws",
    OneClassTwice="with a tail, classes must be distinct",
    AnErrorThatIsNotSaid=ERROR,
    AnErrorForEachItem=ERROR,
    ClassesShiftedByOne="Correct decode if this difference is large",
    ATailOfItsOwnRounding=ERROR,
    TheMassAtTemperatureOne=MASS,
    NoMass=MASS,
    TheMeanMass=MASS,
    TheLogarithmOfTheMass=MASS,
    DividedByTheTemperature=UNDIVIDED,
    DividedAndMultipliedAgain=UNDIVIDED,
    ATemperatureThatIsForgotten=UNDIVIDED,
    ASoftCapThatIsForgotten=FACTORS,
    FactorsAndNothingElse=FACTORS,
    InHalfPrecision=LARGE,
    ARangeToMinusInfinity=RULED_OUT,
    AnErrorOfAnother=RULED_OUT,
    NanBecomesZero="Raise a SettingError in encode",
    ARangeOfZero=FEW,
    IdsInSixteenBits=IDS,
    IdsInBfloat16=IDS,
    IdsModuloSixteenBits=IDS,
)
followed("UndeclaredDraws", "Declare draws = True")(laws_of(DrawnLaws, codec_item_mutant.UndeclaredDraws))
followed("NothingIsDrawn", IN_TURN)(laws_of(LikelyLaws, codec_item_mutant.NothingIsDrawn))


@followed("PaddedToTheWidestItem", ONE_FORM)
class PaddedToAllDraws(Drawn):
    def encode(self, logits, **options):
        rows, counts = super().encode(logits, **options).parts["drawn"]
        padded = torch.zeros(len(counts), self.rounds, 2, dtype=torch.int32)
        padded[torch.arange(self.rounds) < counts.unsqueeze(1)] = rows
        return Encoded({"drawn": padded, "counts": counts})


@followed("TwoNamesOfOneTensor", "Return a separate tensor for each name")
class ATensorForEachName(Rounded):
    def shared(self, logits):
        return {"low": torch.zeros(3), "high": torch.zeros(3)}


@followed("ACodebookOfTheFirstBatch", ONCE)
class ACodebookOfSettings(Rounded):
    def shared(self, logits):
        return {"mean": torch.zeros(logits.shape[-1], device=logits.device)}


@followed("ACodebookOfTheFirstBatch", ONCE)
class AMeanForEachItem(Rounded):
    def encode(self, logits, **options):
        mean = logits.float().mean(-1, keepdim=True)
        kept = super().encode(logits - mean, **options)
        return kept._replace(parts={**kept.parts, "mean": mean})

    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options) + parts["mean"]


@followed("ShiftedInPlace", IN_PLACE)
class Shifted(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits - logits.amax(-1, keepdim=True), **options)


@followed("ShiftedInPlace", IN_PLACE)
class AClone(codec_mutant.ShiftedInPlace):
    def encode(self, logits, **options):
        return super().encode(logits.clone(), **options)


@followed("AddedUpInAPart", IN_PLACE)
class AddedUpInAClone(codec_mutant.AddedUpInAPart):
    def decode(self, parts, shared, **options):
        return super().decode({**parts, "low": parts["low"].clone()}, shared, **options)


@followed("AHeadThatIsScaledEachTime", IN_PLACE)
class AClonedHead(codec_mutant.AHeadThatIsScaledEachTime):
    def decode(self, parts, shared, **options):
        return super().decode(parts, {**shared, "weight": shared["weight"].clone()}, **options)


@followed("OnTheCpuWhateverIsGiven", "pass its input's device")
class OnTheDeviceThatIsGiven(Drawn):
    def draw(self, probs, seed):
        return super().draw(probs * torch.ones(probs.shape[-1], device=probs.device), seed)


@followed("PythonsGenerator", FROM_SEED)
class AGeneratorOfTheSeed(Rounded):
    def encode(self, logits, *, temperature, seed):
        torch.rand((), generator=torch.Generator().manual_seed(seed))
        return super().encode(logits, temperature=temperature, seed=seed)


@followed("TheLogarithmOfARoundedShare", "clamp the inputs of logarithms and divisions")
class TheLogarithmOfAClampedShare(Rounded):
    def decode(self, parts, shared, **options):
        return parts["low"] + parts["codes"].clamp_min(1).float().log() * parts["step"]


@followed("AnErrorBeforeTheLastRounding", ERROR)
class AnErrorOfWhatIsDecoded(codec_value_mutant.AnErrorBeforeTheLastRounding):
    def encode(self, logits, *, temperature, seed):
        kept = super().encode(logits, temperature=temperature, seed=seed)
        found = self.decode(kept.parts, {}, classes=logits.shape[-1], temperature=temperature)
        return kept._replace(error=float((found - logits).abs().max()))


@followed("DividedAndMultipliedAgain", UNDIVIDED)
class DividedWhereItIsSaid(codec_value_mutant.DividedAndMultipliedAgain):
    uses_temperature = True


FLOAT32 = "Convert logits to float32 first"


@followed("ASoftmaxInHalfPrecision", FLOAT32)
class ASoftmaxInFloat32(codec_value_mutant.ASoftmaxInHalfPrecision):
    def encode(self, logits, **options):
        return super().encode(logits.float(), **options)


@followed("AMassInHalfPrecision", FLOAT32)
class AMassInFloat32(codec_value_mutant.AMassInHalfPrecision):
    def encode(self, logits, **options):
        return super().encode(logits.float(), **options)


@followed("ByWayOfNumpy", FLOAT32)
class Float32ByWayOfNumpy(codec_value_mutant.ByWayOfNumpy):
    def encode(self, logits, **options):
        return super().encode(logits.float(), **options)


@followed("FactorsAndNothingElse", FACTORS)
class FactorsOrAnError(codec_value_mutant.FactorsAndNothingElse):
    def encode(self, logits, **options):
        if isinstance(logits, torch.Tensor):
            raise SettingError("logits are multiplied out")
        return super().encode(logits, **options)


@followed("FactorsAndNothingElse", FACTORS)
class FactorsOrDenseLogits(codec_value_mutant.FactorsAndNothingElse):
    def encode(self, logits, **options):
        return Encoded({"dense": logits}) if isinstance(logits, torch.Tensor) else super().encode(logits, **options)

    def shared(self, logits):
        return {} if isinstance(logits, torch.Tensor) else super().shared(logits)

    def decode(self, parts, shared, **options):
        return parts["dense"] if "dense" in parts else super().decode(parts, shared, **options)


@followed("InHalfPrecision", LARGE)
class InHalfPrecisionUpToItsLargest(codec_value_mutant.InHalfPrecision):
    def encode(self, logits, **options):
        if float(logits.abs().max()) > torch.finfo(torch.float16).max:
            raise SettingError("logits exceed float16")
        return super().encode(logits, **options)


@followed("RuledOutBecomesTheLowest", RULED_OUT)
class RuledOutByAMask(codec_value_mutant.RuledOutBecomesTheLowest):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        return kept._replace(parts={**kept.parts, "out": logits == -math.inf})

    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options).masked_fill(parts["out"], -math.inf)


followed("RuledOutBecomesTheLowest", RULED_OUT)(Rounded)


@followed("MoreThanThereAre", FEW)
class AsManyAsThereAre(Likely):
    def encode(self, logits, **options):
        _ = logits.topk(min(3, logits.shape[-1]))
        return super().encode(logits, **options)


@followed("IdsInSixteenBits", IDS)
class FewClassesInSixteenBits(codec_value_mutant.IdsInSixteenBits):
    def encode(self, logits, **options):
        if logits.shape[-1] > 2**16:
            raise SettingError("ids of more than 65,536 classes do not fit 16 bits")
        return super().encode(logits, **options)
