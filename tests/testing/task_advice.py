"""Advice for tasks, followed."""

from __future__ import annotations

import copy

import torch
from testing import task_mutant, task_option_mutant, task_prediction_mutant
from testing.advice import followed, undone
from testing.specimen import laws_of
from testing.task_model import Bilingual, Generous, Sums, SumsLaws
from torch import nn

from kdplug import LossSum

followed("WithoutTwoMethods", "Define every member of kdplug.Task")(Sums)
LENGTH = "must have a length above 0"
VOCABULARIES = "or describe the difference in vocabulary_difference"
SAME_CLASSES = f"build both for the same classes, {VOCABULARIES}"
FINGERPRINT = "Return strings, numbers, lists and dicts"
REVIEW = "compute warnings from data and settings"
PAIRS = "must yield pairs of a setting and a warning"
OWN = "Use a separate torch.Generator"
MODEL = "change no parameter or buffer"
METRICS = "let evaluate return predict(model, batches).metrics"
PART_OF_THE_METRIC = "return the example's part of the metric as score"
PLAIN = "Return finite numbers, strings and lists"

undone(
    Silent="must describe the data in one or two sentences",
    FitWithATypo="must return None or epochs, batch_size, learning_rate",
    FitForNoEpoch="must be above 0",
    WithoutABaseline="must have a length above 0",
    OrderByChance="Draw from a separate torch.Generator with a fixed seed",
    KeyWithATypo="Did you mean 'logits'?",
    AnotherNumberOfClasses=SAME_CLASSES,
    AnItemThatOneSideLacks="mark the same items in logits_mask on both sides",
    LogitsOfNothing="clamp the inputs of logarithms and divisions",
    WithoutLosses="return the loss on the labels of each item",
    DetachedLosses="remove detach(), item() and no_grad()",
    LossForEachExample="return one tensor with a loss per item, or one kdplug.LossSum",
    MeanOfLabels="return kdplug.LossSum(total, count), or one loss per item",
    FigureOfAnotherName="give both the same name",
    TrainedOnTheTest=MODEL,
    NeverContent="Make check() raise only for settings that cannot be used",
    CheckedAwayTheFirst="and change nothing",
    LossesOnDemand="Return losses for any keys",
    DeafToWhatIsRead="return them after that call",
    AStartThatIsForgotten="copy weights into it, or set starts_student = False",
    TheWrongWayRound="copy from the teacher to the student",
    AnotherFlagThatIsAMethod="use an attribute or a property",
    TheLengthOfTheLongest="return the sum over examples as a Python int, without padding",
    OfNothing="must be a plural noun",
    AGeneratorOfItsOwn="draw only from these",
    TrainedByItsOwnWriting=MODEL,
    AFlagForTheDifference="describe it",
    OneBatchForBothVocabularies="must be {'teacher': …, 'student': …}",
    AModelAsAFingerprint=FINGERPRINT,
    AFingerprintOfNothing="return what identifies the models and their data",
    AFingerprintByChance="compute it from settings and files",
    AWarningWithoutItsSetting=PAIRS,
    AWarningThatSaysNothing=PAIRS,
    ASentenceInThePlaceOfASetting="must yield the path of a setting, such as data.train",
    AReviewByChance=REVIEW,
    AReviewThatSorts="change nothing in it",
    AReviewThatTrainsTheTeacher=MODEL,
    WithoutValidation=LENGTH,
    ValidatedOnTheTest="hold out examples for 'validation' that no other part has",
    ValidatedOnRowsOfTheTraining="hold out examples for 'validation' that no other part has",
    DistilledOnTheTest="hold out examples for 'test' that no other part has",
    AnotherAccuracy=METRICS,
    MoreOfEvaluate=METRICS,
    ARowThatLacks="return one row for each, in order",
    SortedByInput="return rows in the order of the examples",
    AMeanOverTheBatch="compute a row from its own example, without padding",
    RightThroughout=PART_OF_THE_METRIC,
    SquaredErrorOfACorrelation="the aggregate that gives the metric",
    AnAggregateOfAnotherName="write one of mean, exp_mean, root_mean, pearson, spearman",
    ATargetOfAnotherName="write one of class, tags, classes, number, text, tokens",
    ARowWithATypo="use only score, weight, unit, label, prediction, probability, input",
    AScoreThatIsATensor="return a Python float",
    ANegativeWeight="return 0 or more",
    AWholeInput="cut it to 200",
    ALabelThatIsATensor=PLAIN,
    AChanceThatIsNoNumber=PLAIN,
    ATupleOfLabels="return lists, and text as keys",
)
followed("AnotherNumberOfClasses", SAME_CLASSES)(Bilingual)


def generator():
    return torch.Generator().manual_seed(7)


@followed("OrderByChance", "Draw from a separate torch.Generator with a fixed seed")
class OrderOfASeed(task_mutant.OrderByChance):
    def __init__(self) -> None:
        self.order = torch.randperm(6, generator=generator())


@followed("LabelsByChance", "Draw from a separate torch.Generator with a fixed seed")
class LabelsOfASeed(Sums):
    def collate(self, examples):
        batch = task_mutant.Beside(input=torch.stack(examples))
        batch.labels = torch.rand(len(examples), generator=generator())
        return batch


@followed("MeanOfLabels", "return kdplug.LossSum(total, count), or one loss per item")
@followed("LossForEachExample", "return one tensor with a loss per item, or one kdplug.LossSum")
@followed("MeanWithACount", "return a sum as total")
class SumWithACount(Sums):
    def student_adaptor(self, batch, outputs):
        losses = super().student_adaptor(batch, outputs)["losses"]
        return {"logits": outputs, "losses": LossSum(losses.sum(), len(losses))}


@followed("FigureOfAnotherName", "give both the same name")
class MetricOfTheSameName(task_mutant.FigureOfAnotherName):
    metric = "acc"


@followed("MeanOverNothing", "clamp a count before dividing by it")
class SumOverOneAtLeast(Sums):
    def evaluate(self, model, batches):
        right = torch.zeros(0)
        return {"accuracy": float(right.sum()) / max(len(right), 1)}


@followed("LeftInTrainingMode", "call model.eval()")
class PutBackInEvalMode(task_mutant.LeftInTrainingMode):
    def evaluate(self, model, batches):
        figures = super().evaluate(model, batches)
        model.eval()
        return figures


class ContentWithATeacher(Generous):
    """The same check as ``NeverContent`` has, about a setting."""

    def __init__(self, *, teacher: str = "") -> None:
        self.teacher = teacher

    def check(self):
        if not self.teacher:
            task_option_mutant.NeverContent.check(self)


followed("NeverContent", "Make check() raise only for settings that cannot be used")(
    laws_of(SumsLaws, ContentWithATeacher, settings={"teacher": "bert"})
)


@followed("AStartThatIsForgotten", "copy weights into it, or set starts_student = False")
class NoStart(task_option_mutant.AStartThatIsForgotten):
    starts_student = False


@followed("SharedWeights", "copy it")
class CopiedWeights(Generous):
    def start_student(self, student, teacher):
        student.weight = nn.Parameter(teacher.weight.detach().clone())


@followed("AnotherFlagThatIsAMethod", "use an attribute or a property")
class AFlagThatIsAProperty(Generous):
    @property
    def is_lower_better(self):
        return False


@followed("AGeneratorOfItsOwn", "draw only from these")
class TheGlobalGenerator(Generous):
    def prepare_batch(self, batch, student):
        return (batch[0] + torch.rand(batch[0].shape),)


@followed("WritingInTrainingMode", "call student.eval()")
class WritingInTrainingModeForAWhile(task_option_mutant.WritingInTrainingMode):
    def prepare_batch(self, batch, student):
        prepared = super().prepare_batch(batch, student)
        student.eval()
        return prepared


ANSWER = "Change a copy of the model, or restore the model before answer() returns"


@followed("AHeadThatStays", ANSWER)
class AHeadOnACopy(task_option_mutant.AHeadThatStays):
    def answer(self, model, batch):
        return super().answer(copy.deepcopy(model), batch)


@followed("AHeadThatStays", ANSWER)
class AHeadThatIsRemoved(task_option_mutant.AHeadThatStays):
    def answer(self, model, batch):
        answer = super().answer(model, batch)
        del model[-1]
        return answer


@followed("RoundedForTheAnswer", ANSWER)
class ARoundedCopy(task_option_mutant.RoundedForTheAnswer):
    def answer(self, model, batch):
        return super().answer(copy.deepcopy(model), batch)


@followed("AReviewOfDrawnRows", OWN)
class AReviewOfRowsOfASeed(Generous):
    def review_data(self):
        rows = torch.randperm(6, generator=generator())[:0]
        yield "data.train", f"{len(rows)} of the drawn rows are odd"


@followed("AReviewWithNoise", OWN)
class AReviewWithNoiseOfASeed(Generous):
    def review_teacher(self, outputs):
        return [
            ("teacher", "is odd")
            for one in outputs
            if float(torch.rand(one.logits[0].shape, generator=generator()).sum()) < 0
        ]


@followed("AReviewInPlace", "change a copy")
class AReviewOfACopy(Generous):
    def review_teacher(self, outputs):
        for one in outputs:
            one.logits[0].clone().exp_()
        return []


@followed("MoreOfEvaluate", METRICS)
@followed("AnotherAccuracy", METRICS)
class MetricsOfPredict(task_prediction_mutant.AnotherAccuracy):
    def evaluate(self, model, batches):
        return self.predict(model, batches).metrics


@followed("ARowThatLacks", "return one row for each, in order")
class ARowOfNoWeight(task_prediction_mutant.Changed):
    def changed(self, rows):
        return [*rows[:-1], {**rows[-1], "weight": 1.0}]


@followed("AWholeInput", "cut it to 200")
class ACutInput(task_prediction_mutant.Changed):
    def changed(self, rows):
        return [{**row, "input": row["input"][:200]} for row in rows]
