"""Defects of cache codecs: of the form of what they keep."""

from __future__ import annotations

import torch
from testing.codec_model import Changed, Drawn, DrawnLaws, Factors, FactorsLaws, Rounded, RoundedLaws
from testing.mutant import mutant

from kdplug import Ragged


@mutant(RoundedLaws, "test_it_offers_all_that_a_cache_asks_for", "it lacks takes_factored, shared")
class WithoutTwoNames:
    uses_temperature = False
    encode = decode = staticmethod(print)


@mutant(RoundedLaws, "test_it_offers_all_that_a_cache_asks_for", "uses_temperature must be True or False, got <bound")
class AFlagThatIsAMethod(Rounded):
    def uses_temperature(self):
        return False


@mutant(RoundedLaws, "test_it_keeps_tensors_by_name", "encode must return kdplug.Encoded, got dict")
class PartsAlone(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits, **options).parts


@mutant(RoundedLaws, "test_it_keeps_tensors_by_name", "encode returned no parts")
class NothingAtAll(Changed):
    def change(self, parts):
        return {}


@mutant(RoundedLaws, "test_it_keeps_tensors_by_name", "part 'per-item step' must have a Python identifier as its name")
class ANameWithAHyphen(Changed):
    def change(self, parts):
        return {**parts, "per-item step": parts["step"]}


@mutant(RoundedLaws, "test_it_keeps_tensors_by_name", "part 'low' must be a tensor or kdplug.Ragged, got list")
class AList(Changed):
    def change(self, parts):
        return {**parts, "low": parts["low"].tolist()}


@mutant(
    RoundedLaws, "test_it_keeps_tensors_by_name", "part 'codes' is [11, 6], but its first dimension must be the 6 items"
)
class ClassesFirst(Changed):
    def change(self, parts):
        return {**parts, "codes": parts["codes"].T}


@mutant(RoundedLaws, "test_it_keeps_tensors_by_name", "shared part 'bits' must be a tensor, got int")
class ANumberKeptOnce(Rounded):
    def shared(self, logits):
        return {"bits": 8}


@mutant(DrawnLaws, "test_it_keeps_tensors_by_name", "rows")
class CountsInABiasedByte(Drawn):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        rows, counts = kept.parts["drawn"]
        return kept._replace(parts={"drawn": Ragged(rows, counts - 1)})


@mutant(
    RoundedLaws,
    "test_every_item_is_kept_in_the_same_form",
    "for others: they cannot be concatenated",
)
class ADtypeForEachBatch(Changed):
    def change(self, parts):
        wide = bool((parts["step"] > 0.05).any())
        return {**parts, "codes": parts["codes"].to(torch.int16 if wide else torch.uint8)}


@mutant(DrawnLaws, "test_every_item_is_kept_in_the_same_form", "they cannot be concatenated")
class PaddedToTheWidestItem(Drawn):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        rows, counts = kept.parts["drawn"]
        used = torch.arange(int(counts.max())) < counts.unsqueeze(1)
        padded = torch.zeros(*used.shape, 2, dtype=torch.int32)
        padded[used] = rows
        return kept._replace(parts={"drawn": padded, "counts": counts})


@mutant(RoundedLaws, "test_another_process_reads_what_it_kept", "no attribute 'step'")
class AStepThatIsRemembered(Rounded):
    def encode(self, logits, **options):
        kept = super().encode(logits, **options)
        self.step = kept.parts["step"]
        return kept._replace(parts={name: part for name, part in kept.parts.items() if name != "step"})

    def decode(self, parts, shared, **options):
        step = self.step[: len(parts["codes"])]
        return super().decode({**parts, "step": step}, shared, **options)


@mutant(RoundedLaws, "test_another_process_reads_what_it_kept", "decodes the parts to different logits")
class ARangeThatGrows(Rounded):
    highest = 0.0

    def encode(self, logits, **options):
        self.highest = max(self.highest, float(logits.max()))
        return super().encode(logits - self.highest, **options)

    def decode(self, parts, shared, **options):
        return super().decode(parts, shared, **options) + self.highest


@mutant(RoundedLaws, "test_another_process_reads_what_it_kept", "a file cannot hold low, high")
class TwoNamesOfOneTensor(Rounded):
    def shared(self, logits):
        table = torch.zeros(3)
        return {"low": table, "high": table}


@mutant(
    RoundedLaws,
    "test_what_is_kept_once_does_not_depend_on_the_items",
    "'mean' differs if it is computed from other items",
)
class ACodebookOfTheFirstBatch(Rounded):
    def shared(self, logits):
        return {"mean": logits.mean(0)}


@mutant(RoundedLaws, "test_its_inputs_are_not_modified", "modified its input in place: the given logits")
class ShiftedInPlace(Rounded):
    def encode(self, logits, **options):
        return super().encode(logits.sub_(logits.amax(-1, keepdim=True)), **options)


@mutant(RoundedLaws, "test_its_inputs_are_not_modified", "modified its input in place: part low")
class AddedUpInAPart(Rounded):
    def decode(self, parts, shared, **options):
        return parts["low"].add_(1e-6) + parts["codes"].float() * parts["step"]


@mutant(FactorsLaws, "test_its_inputs_are_not_modified", "modified its input in place: shared part weight")
class AHeadThatIsScaledEachTime(Factors):
    def decode(self, parts, shared, **options):
        shared["weight"].mul_(1 + 1e-6)
        return super().decode(parts, shared, **options)


@mutant(DrawnLaws, "test_it_works_on_any_device", "encode creates a tensor with torch.ones without a device")
class OnTheCpuWhateverIsGiven(Drawn):
    def draw(self, probs, seed):
        return super().draw(probs * torch.ones(probs.shape[-1]), seed)
