"""Defects of held-out data and of predictions."""

from __future__ import annotations

import dataclasses

import torch
from testing.mutant import mutant
from testing.task_model import Generous, Regressed, SumsLaws


@mutant(SumsLaws, "test_every_part_has_examples", "data('validation') must have a length above 0")
class WithoutValidation(Generous):
    def data(self, part):
        return super().data(part)[: 0 if part == "validation" else 6]


HELD_OUT = "test_examples_that_are_held_out_are_in_no_other_part"


@mutant(SumsLaws, HELD_OUT, "6 of the first 6 examples of data('validation') are in data('test') too")
class ValidatedOnTheTest(Generous):
    def data(self, part):
        return super().data("test" if part == "validation" else part)


@mutant(SumsLaws, HELD_OUT, "4 of the first 6 examples of data('validation') are in data('teacher') too")
class ValidatedOnRowsOfTheTraining(Generous):
    def data(self, part):
        if part == "validation":
            return torch.cat([super().data("validation")[:2], super().data("teacher")[:4]])
        return super().data(part)


@mutant(SumsLaws, HELD_OUT, "6 of the first 6 examples of data('test') are in data('distillation') too")
class DistilledOnTheTest(Generous):
    def data(self, part):
        return super().data("test" if part == "distillation" else part)


@mutant(SumsLaws, "test_predictions_come_with_the_metrics_of_evaluate", "predict returns the metrics {'accuracy': ")
class AnotherAccuracy(Generous):
    def evaluate(self, model, batches):
        return {"accuracy": super().evaluate(model, batches)["accuracy"] / 2 + 0.3}


@mutant(SumsLaws, "test_predictions_come_with_the_metrics_of_evaluate", "predict returns the metrics {'accuracy': ")
class MoreOfEvaluate(Generous):
    def evaluate(self, model, batches):
        return {**super().evaluate(model, batches), "error": 0.5}


class Changed(Generous):
    """Changes the rows of each call."""

    def changed(self, rows):
        return rows

    def predict(self, model, batches):
        found = super().predict(model, batches)
        return dataclasses.replace(found, rows=self.changed(list(found.rows)))


ORDER = "test_there_is_a_prediction_for_each_example_in_order"


@mutant(SumsLaws, ORDER, "predict returns 3 rows for 4 examples of data('test')")
class ARowThatLacks(Changed):
    def changed(self, rows):
        return rows[1:] or rows


@mutant(SumsLaws, ORDER, "row 0 of predict has the input ")
class SortedByInput(Changed):
    def changed(self, rows):
        return sorted(rows, key=lambda row: row["input"])


@mutant(SumsLaws, "test_the_size_of_batches_does_not_change_predictions", "in a batch with other examples, but")
class AMeanOverTheBatch(Generous):
    def predict(self, model, batches):
        found = [super(AMeanOverTheBatch, self).predict(model, [batch]) for batch in batches]
        rows = [{**row, "score": one.metrics["accuracy"]} for one in found for row in one.rows]
        return dataclasses.replace(super().predict(model, batches), rows=rows)


FOLLOWS = "test_the_metric_follows_from_the_predictions"


@mutant(SumsLaws, FOLLOWS, "the mean of the predictions is 1, but their 'accuracy' is")
class RightThroughout(Changed):
    def changed(self, rows):
        return [{**row, "score": 1.0} for row in rows]


@mutant(SumsLaws, FOLLOWS, "the mean of the predictions is")
class SquaredErrorOfACorrelation(Regressed):
    def predict(self, model, batches):
        return dataclasses.replace(super().predict(model, batches), aggregate="mean")


@mutant(SumsLaws, FOLLOWS, "predict returns the aggregate 'average': write one of mean, exp_mean")
class AnAggregateOfAnotherName(Generous):
    def predict(self, model, batches):
        return dataclasses.replace(super().predict(model, batches), aggregate="average")


@mutant(SumsLaws, FOLLOWS, "predict returns the target 'classification': write one of class, tags")
class ATargetOfAnotherName(Generous):
    def predict(self, model, batches):
        return dataclasses.replace(super().predict(model, batches), target="classification")


PLAIN = "test_predictions_are_plain_data"


@mutant(SumsLaws, PLAIN, "row 0 of predict has the key 'predicted': use only score, weight")
class ARowWithATypo(Changed):
    def changed(self, rows):
        return [{"score": row["score"], "predicted": row["prediction"]} for row in rows]


@mutant(SumsLaws, PLAIN, "row 0 of predict has the score tensor(")
class AScoreThatIsATensor(Changed):
    def changed(self, rows):
        return [{**row, "score": torch.tensor(row["score"])} for row in rows]


@mutant(SumsLaws, PLAIN, "row 0 of predict has the weight -1.0: return 0 or more")
class ANegativeWeight(Changed):
    def changed(self, rows):
        return [{**row, "weight": -1.0} for row in rows]


@mutant(SumsLaws, PLAIN, "characters: cut it to 200")
class AWholeInput(Changed):
    def changed(self, rows):
        return [{**row, "input": row["input"] * 99} for row in rows]


@mutant(SumsLaws, PLAIN, "row 0 of predict cannot be written as JSON: Object of type Tensor")
class ALabelThatIsATensor(Changed):
    def changed(self, rows):
        return [{**row, "label": torch.tensor(row["label"])} for row in rows]


@mutant(SumsLaws, PLAIN, "row 0 of predict cannot be written as JSON: Out of range float values")
class AChanceThatIsNoNumber(Changed):
    def changed(self, rows):
        return [{**row, "probability": float("nan")} for row in rows]


@mutant(SumsLaws, PLAIN, "as JSON: return lists, and text as keys")
class ATupleOfLabels(Changed):
    def changed(self, rows):
        return [{**row, "label": (row["label"],)} for row in rows]
