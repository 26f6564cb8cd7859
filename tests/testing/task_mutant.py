"""Defects of tasks."""

from __future__ import annotations

import torch
from testing.mutant import mutant
from testing.task_model import Sums, SumsLaws

from kdplug import LossSum


@mutant(SumsLaws, "test_it_offers_all_that_a_recipe_asks_for", "it lacks teacher_fit, collate")
class WithoutTwoMethods:
    metric = "accuracy"
    about = build_teacher = build_student = data = teacher_adaptor = student_adaptor = evaluate = staticmethod(print)


@mutant(SumsLaws, "test_it_says_what_it_is_about", "got ''")
class Silent(Sums):
    def about(self):
        return ""


@mutant(SumsLaws, "test_the_teacher_is_fitted_in_steps_that_exist", "must return None or epochs, batch_size")
class FitWithATypo(Sums):
    def teacher_fit(self):
        return {"epoch": 1, "batch_size": 4, "learning_rate": 0.1}


@mutant(SumsLaws, "test_the_teacher_is_fitted_in_steps_that_exist", "teacher_fit()['epochs'] must be above 0")
class FitForNoEpoch(Sums):
    def teacher_fit(self):
        return {"epochs": 0, "batch_size": 4, "learning_rate": 0.1}


@mutant(SumsLaws, "test_every_part_has_examples", "data('baseline') must have a length above 0")
class WithoutABaseline(Sums):
    def data(self, part):
        return super().data(part)[: 0 if part == "baseline" else 6]


@mutant(SumsLaws, "test_examples_are_the_same_in_every_run", "returns different examples, or a different order")
class OrderByChance(Sums):
    def __init__(self) -> None:
        self.order = torch.randperm(6)

    def data(self, part):
        return super().data(part)[self.order]


class Beside(dict):
    """Inputs, and labels beside them that no model is called with."""


@mutant(SumsLaws, "test_examples_are_the_same_in_every_run", "returns different examples, or a different order")
class LabelsByChance(Sums):
    def collate(self, examples):
        batch = Beside(input=torch.stack(examples))
        batch.labels = torch.rand(len(examples))
        return batch


@mutant(SumsLaws, "test_adaptors_give_what_an_objective_reads", "Did you mean 'logits'?")
class KeyWithATypo(Sums):
    def teacher_adaptor(self, batch, outputs):
        return {"logit": outputs}


@mutant(
    SumsLaws,
    "test_adaptors_give_what_an_objective_reads",
    "the teacher returns logits [[4, 3]] but the student [[4, 2]]",
)
class AnotherNumberOfClasses(Sums):
    def build_teacher(self):
        return torch.nn.Linear(4, 3)


@mutant(
    SumsLaws, "test_adaptors_give_what_an_objective_reads", "the student's logits of data('teacher') are not finite"
)
class LogitsOfNothing(Sums):
    def student_adaptor(self, batch, outputs):
        return {"logits": outputs / 0}


@mutant(SumsLaws, "test_the_student_can_be_trained_on_its_labels", "returns no 'losses'")
class WithoutLosses(Sums):
    def student_adaptor(self, batch, outputs):
        return {"logits": outputs}


@mutant(SumsLaws, "test_the_student_can_be_trained_on_its_labels", "do not reach the student")
class DetachedLosses(Sums):
    def student_adaptor(self, batch, outputs):
        return super().student_adaptor(batch, outputs.detach())


@mutant(
    SumsLaws,
    "test_cutting_a_batch_leaves_the_loss_on_its_labels_unchanged",
    "are a mean over 1 items in a batch of data('distillation') but over 2 in its two halves: return kdplug.LossSum",
)
class MeanOfLabels(Sums):
    def student_adaptor(self, batch, outputs):
        found = super().student_adaptor(batch, outputs)
        return {**found, "losses": found["losses"].mean()}


@mutant(SumsLaws, "test_cutting_a_batch_leaves_the_loss_on_its_labels_unchanged", "although both count the same items")
class MeanWithACount(Sums):
    def student_adaptor(self, batch, outputs):
        losses = super().student_adaptor(batch, outputs)["losses"]
        return {"logits": outputs, "losses": LossSum(losses.mean(), len(losses))}


@mutant(SumsLaws, "test_cutting_a_batch_leaves_the_loss_on_its_labels_unchanged", "but another number for its halves")
class LossForEachExample(Sums):
    def student_adaptor(self, batch, outputs):
        losses = super().student_adaptor(batch, outputs)["losses"]
        return {"logits": outputs, "losses": [LossSum(loss, 1) for loss in losses]}


@mutant(SumsLaws, "test_the_metric_is_among_the_figures", "but not its metric 'accuracy'")
class FigureOfAnotherName(Sums):
    def evaluate(self, model, batches):
        return {"acc": super().evaluate(model, batches)["accuracy"]}


@mutant(SumsLaws, "test_the_metric_is_among_the_figures", "figures must be finite")
class MeanOverNothing(Sums):
    def evaluate(self, model, batches):
        return {"accuracy": float(torch.zeros(0).mean())}


@mutant(SumsLaws, "test_evaluating_changes_nothing", "in training mode")
class LeftInTrainingMode(Sums):
    def evaluate(self, model, batches):
        return super().evaluate(model.train(), batches)


@mutant(SumsLaws, "test_evaluating_changes_nothing", "evaluate changes weight of the model")
class TrainedOnTheTest(Sums):
    def evaluate(self, model, batches):
        model.weight.data.add_(1.0)
        return super().evaluate(model, batches)
