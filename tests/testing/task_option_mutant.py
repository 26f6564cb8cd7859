"""Defects of what tasks offer beyond what every task does."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.task_model import Bilingual, Generous, SumsLaws
from torch import nn

from kdplug import ConfigError


@mutant(
    SumsLaws,
    "test_it_finds_nothing_wrong_with_good_settings",
    "check() rejects the settings of the test class",
)
class NeverContent(Generous):
    def check(self):
        raise ConfigError("there is no teacher yet", field="teacher")


@mutant(SumsLaws, "test_it_finds_nothing_wrong_with_good_settings", "returns different examples after check()")
class CheckedAwayTheFirst(Generous):
    first = 0

    def check(self):
        self.first = 1

    def data(self, part):
        return super().data(part)[self.first :]


@mutant(SumsLaws, "test_what_an_objective_reads_does_not_change_the_rest", "losses depend on the keys passed to expect")
class LossesOnDemand(Generous):
    def student_adaptor(self, batch, outputs):
        found = super().student_adaptor(batch, outputs)
        return {name: one for name, one in found.items() if name in getattr(self, "reads", ("logits",))}


@mutant(
    SumsLaws,
    "test_what_an_objective_reads_does_not_change_the_rest",
    "returns no 'hidden' states, although expect was called with 'hidden'",
)
class DeafToWhatIsRead(Generous):
    def expect(self, reads):
        pass


@mutant(SumsLaws, "test_a_student_starts_from_the_teacher_and_leaves_it_alone", "leaves the student as it was built")
class AStartThatIsForgotten(Generous):
    def start_student(self, student, teacher):
        pass


@mutant(
    SumsLaws,
    "test_a_student_starts_from_the_teacher_and_leaves_it_alone",
    "start_student changes weight of the teacher",
)
class TheWrongWayRound(Generous):
    def start_student(self, student, teacher):
        teacher.load_state_dict(student.state_dict())


@mutant(
    SumsLaws,
    "test_a_student_starts_from_the_teacher_and_leaves_it_alone",
    "weight of the teacher is shared with the student",
)
class SharedWeights(Generous):
    def start_student(self, student, teacher):
        student.weight = teacher.weight


@mutant(SumsLaws, "test_it_says_which_way_its_metric_points", "is_lower_better must be True or False, got <bound")
class AnotherFlagThatIsAMethod(Generous):
    def is_lower_better(self):
        return False


@mutant(
    SumsLaws, "test_units_are_counted_and_padding_is_none", "count finds 5 numbers in a batch, but 8 in its examples"
)
class TheLengthOfTheLongest(Generous):
    def count(self, batch):
        return len(batch[0]) + 1


@mutant(SumsLaws, "test_units_are_counted_and_padding_is_none", "unit must be a plural noun")
class OfNothing(Generous):
    unit = ""


@mutant(
    SumsLaws,
    "test_batches_that_are_made_anew_are_the_same_in_a_resumed_run",
    "returns another batch for the same input",
)
class AGeneratorOfItsOwn(Generous):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def prepare_batch(self, batch, student):
        return (batch[0] + torch.rand(batch[0].shape, generator=self.generator),)


@mutant(
    SumsLaws,
    "test_batches_that_are_made_anew_are_the_same_in_a_resumed_run",
    "prepare_batch changes weight of the student",
)
class TrainedByItsOwnWriting(Generous):
    def prepare_batch(self, batch, student):
        student.weight.mul_(0.9)
        return batch


@mutant(
    SumsLaws, "test_batches_that_are_made_anew_are_the_same_in_a_resumed_run", "leaves the student in training mode"
)
class WritingInTrainingMode(Generous):
    def prepare_batch(self, batch, student):
        student.train()
        return batch


@mutant(SumsLaws, "test_an_answer_leaves_the_model_as_it_was", "returns logits in another form after answer()")
class AHeadThatStays(Generous):
    def build_student(self):
        return nn.Sequential(nn.Linear(4, 2))

    def answer(self, model, batch):
        model.append(nn.ZeroPad1d((0, 3)))
        return model(*batch)


@mutant(SumsLaws, "test_an_answer_leaves_the_model_as_it_was", "answer changes weight of the model")
class RoundedForTheAnswer(Generous):
    def answer(self, model, batch):
        model.weight.copy_(model.weight.round())
        return model(*batch)


@mutant(SumsLaws, "test_each_side_of_two_vocabularies_has_inputs_of_its_own", "must be a string, got True")
class AFlagForTheDifference(Bilingual):
    vocabulary_difference = True


@mutant(
    SumsLaws, "test_each_side_of_two_vocabularies_has_inputs_of_its_own", "a batch of data('distillation') must be {"
)
class OneBatchForBothVocabularies(Bilingual):
    def collate(self, examples):
        return (torch.stack([one[1] if isinstance(one, tuple) else one for one in examples]),)


@mutant(
    SumsLaws,
    "test_adaptors_give_what_an_objective_reads",
    "for data('distillation') the teacher returns logits ['4 items'] but the student ['3 items']",
)
class AnItemThatOneSideLacks(Bilingual):
    def student_adaptor(self, batch, outputs):
        return {**super().student_adaptor(batch, outputs), "logits_mask": torch.arange(len(outputs)) > 0}


@mutant(SumsLaws, "test_its_fingerprint_is_plain_data_and_the_same_in_every_run", "must return plain data")
class AModelAsAFingerprint(Generous):
    def fingerprint(self):
        return {"teacher": nn.Linear(1, 1)}


@mutant(SumsLaws, "test_its_fingerprint_is_plain_data_and_the_same_in_every_run", "fingerprint() is {}: return")
class AFingerprintOfNothing(Generous):
    def fingerprint(self):
        return {}


@mutant(SumsLaws, "test_its_fingerprint_is_plain_data_and_the_same_in_every_run", "when the task is built again")
class AFingerprintByChance(Generous):
    def __init__(self):
        self.mark = int(torch.randint(10**9, ()))

    def fingerprint(self):
        return {"teacher": self.mark}


REVIEWS = "test_its_reviews_are_warnings_and_change_nothing"


@mutant(SumsLaws, REVIEWS, "review_data must yield pairs of a setting and a warning, got 'six rows'")
class AWarningWithoutItsSetting(Generous):
    def review_data(self):
        return ["six rows"]


@mutant(SumsLaws, REVIEWS, "review_data must yield pairs of a setting and a warning, got ('data.train', '')")
class AWarningThatSaysNothing(Generous):
    def review_data(self):
        return [("data.train", "")]


@mutant(
    SumsLaws, REVIEWS, "review_teacher must yield the path of a setting, such as data.train, and a warning of one line"
)
class ASentenceInThePlaceOfASetting(Generous):
    def review_teacher(self, outputs):
        yield "the teacher", "is odd"


@mutant(SumsLaws, REVIEWS, "when the task is built again")
class AReviewByChance(Generous):
    def __init__(self):
        self.row = int(torch.randint(10**9, ()))

    def review_data(self):
        yield "data.train", f"row {self.row} is odd"


@mutant(SumsLaws, REVIEWS, "review_data draws from a global generator")
class AReviewOfDrawnRows(Generous):
    def review_data(self):
        rows = torch.randperm(6)[:0]
        yield "data.train", f"{len(rows)} of the drawn rows are odd"


@mutant(SumsLaws, REVIEWS, "review_teacher draws from a global generator")
class AReviewWithNoise(Generous):
    def review_teacher(self, outputs):
        return [("teacher", "is odd") for one in outputs if float(torch.rand_like(one.logits[0]).sum()) < 0]


@mutant(SumsLaws, REVIEWS, "data() returns other examples after review_data()")
class AReviewThatSorts(Generous):
    is_sorted = False

    def data(self, part):
        found = super().data(part)
        return found.sort(0).values if self.is_sorted else found

    def review_data(self):
        self.is_sorted = True
        return []


@mutant(SumsLaws, REVIEWS, "review_teacher changes the outputs that are passed to it")
class AReviewInPlace(Generous):
    def review_teacher(self, outputs):
        for one in outputs:
            one.logits[0].exp_()
        return []


@mutant(SumsLaws, REVIEWS, "review_teacher changes weight of the teacher")
class AReviewThatTrainsTheTeacher(Generous):
    def build_teacher(self):
        self.teacher = super().build_teacher()
        return self.teacher

    def review_teacher(self, outputs):
        list(outputs)
        self.teacher.weight.data.mul_(0.9)
        return []
