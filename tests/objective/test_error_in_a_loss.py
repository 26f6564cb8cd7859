"""An exception that is not kdplug's, raised in a loss, names its term in a note and keeps its type."""

from __future__ import annotations

import pytest
import torch

from kdplug import DistillationConfig, FactoredLogits, Objective, closed_form
from kdplug.contracts.outputs import Tagged
from kdplug.objective.task_objective import TaskObjective

LAYERS = {"feature": "hidden", "layer_S": 0, "layer_T": 0}
NO_LABELS = ": the student's adaptor returned no labels"


def by_label(student_logits, labels):
    return student_logits.gather(-1, labels.unsqueeze(-1)).mean()


def on_features(student_features, labels):
    return student_features.flatten(0, 1)[labels.flatten()].mean()


def unequal(student_logits, teacher_logits):
    return (student_logits - teacher_logits[..., :2]).square().mean()


def unequal_features(student_features, teacher_features):
    return (student_features - teacher_features[..., :2]).square().mean()


def misread(student_logits, teacher_logits):
    return student_logits["logits"]


def notes(objective, error, *outputs):
    with pytest.raises(error) as caught:
        objective(*outputs)
    assert type(caught.value) is error
    return getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize(
    ("loss", "error", "where"),
    [(unequal, RuntimeError, {}), (misread, IndexError, {}), (unequal_features, RuntimeError, LAYERS)],
)
def test_its_note_names_the_term_and_the_entry(of, offer, student, teacher, loss, error, where):
    objective = of({"loss": "ce"}, {"loss": offer(loss), **where})
    assert notes(objective, error, student, teacher) == ["in terms.1.loss (local:offered)"]


def test_its_note_names_the_key_that_the_config_uses(build, offer, match, student, teacher):
    assert notes(build(kd_loss_type=offer(unequal)), RuntimeError, student, teacher) == [
        "in kd_loss_type (local:offered)"
    ]
    matches = [match(), match(loss=offer(unequal_features, name="other"))]
    objective = build(kd_loss_weight=0, intermediate_matches=matches)
    assert notes(objective, RuntimeError, student, teacher) == ["in intermediate_matches.1.loss (local:other)"]


@pytest.mark.parametrize(("loss", "where"), [(by_label, {}), (on_features, LAYERS)])
def test_its_note_says_that_there_are_no_labels_if_the_loss_requests_them(of, offer, student, teacher, loss, where):
    objective = of({"loss": offer(loss), **where})
    assert notes(objective, AttributeError, student, teacher) == [f"in terms.0.loss (local:offered){NO_LABELS}"]


@pytest.mark.parametrize(("loss", "where"), [(by_label, {}), (on_features, LAYERS)])
def test_its_note_does_not_mention_labels_that_were_returned(of, offer, student, teacher, loss, where):
    labels = torch.full((3, 4), 99)
    objective = of({"loss": offer(loss), **where})
    with pytest.raises(Exception, match="index") as caught:
        objective({**student, "labels": [labels]}, teacher)
    assert caught.value.__notes__ == ["in terms.0.loss (local:offered)"]


def test_a_loss_that_handles_missing_labels_runs(of, offer, student, teacher):
    objective = of({"loss": offer(lambda student_logits, labels: student_logits.mean() * (labels is None))})
    assert objective(student, teacher).total == student["logits"].mean()


def test_the_note_of_a_loss_in_chunks_or_of_a_closed_form_is_added_once(of, offer):
    def rows(student, teacher, temperature):
        raise ZeroDivisionError("rows")

    def summed(student_logits, teacher_logits):
        raise ZeroDivisionError("loss")

    factored = [FactoredLogits(torch.randn(8, 4, requires_grad=True), torch.randn(5, 4)) for _ in range(2)]
    outputs = [{"logits": one} for one in factored]
    for loss in (summed, closed_form(rows)(summed)):
        objective = of({"loss": offer(loss)}, logit_chunk=2)
        assert notes(objective, ZeroDivisionError, *outputs) == ["in terms.0.loss (local:offered)"]


def test_with_several_tasks_another_note_names_the_task(offer, student, teacher):
    offer(unequal)
    one = Objective(DistillationConfig(terms=[{"loss": "offered"}]))
    objective = TaskObjective({"qa": one})
    found = notes(objective, RuntimeError, Tagged("qa", student), Tagged("qa", teacher))
    assert found == ["in terms.0.loss (local:offered)", "in task 'qa'"]
