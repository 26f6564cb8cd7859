"""``teacher: student``: a term that reads the student, detached, in the place of a teacher; and terms that read none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdplug import ConfigError, DistillationConfig, Objective

from .conftest import ce, plain_mse


@pytest.fixture
def heads(student):
    torch.manual_seed(1)
    first, second = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    return first, second


def build(*terms, **keys):
    return Objective(DistillationConfig(terms=list(terms), **keys))


def test_one_head_learns_from_another_which_gets_no_gradient(offer, heads):
    offer(ce, "losses", "ce")
    first, second = heads
    objective = build({"loss": "ce", "teacher": "student", "head_S": 0, "head_T": 1})
    report = objective(student={"logits": [first, second]})
    expected = ce(first, second.detach(), 4.0)
    torch.testing.assert_close(report.total, expected)
    report.total.backward()
    assert second.grad is None
    (own,) = torch.autograd.grad(expected, first)
    torch.testing.assert_close(first.grad, own)


def test_layers_of_the_student_are_compared_by_index_and_by_path(offer):
    offer(plain_mse, "losses", "plain")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    term = {"loss": "plain", "teacher": "student", "layer_S": "0", "layer_T": "1"}
    objective, x = build(term), torch.randn(2, 4)
    with objective.capture(model) as capture:
        with capture.student.reading():
            logits = model(x)
        found = objective(student=capture.student.join(logits)).total
    first = model[0](x)
    torch.testing.assert_close(found, plain_mse(first, model[1](first).detach()))
    found.backward()
    assert model[1].weight.grad is None
    by_index = build({**term, "layer_S": 0, "layer_T": 1, "feature": "hidden"})
    hidden = [first, model[1](first)]
    torch.testing.assert_close(by_index(student={"hidden": hidden}).total, found)


def test_a_term_may_read_the_student_beside_several_teachers(offer, heads):
    offer(ce, "losses", "ce")
    first, second = heads
    config = DistillationConfig(
        terms=[
            {"loss": "ce", "teacher": "student", "head_S": 0, "head_T": 1},
            {"loss": "ce", "teacher": "b", "head_S": 1, "head_T": 0},
        ]
    )
    objective = Objective(config, ("a", "b"))
    teacher = torch.randn(3, 5)
    found = objective(student={"logits": [first, second]}, teacher={"a": {}, "b": {"logits": teacher}})
    torch.testing.assert_close(found.total, ce(first, second.detach(), 4.0) + ce(second, teacher, 4.0))
    assert list(objective.reads_of_teachers()) == ["ce_head_1_0_teacher_b"]


@pytest.mark.parametrize(
    "term",
    [
        {"loss": "ce"},
        {"loss": "ce", "head_S": 1, "head_T": 1},
        {"loss": "plain", "layer_S": 1, "layer_T": 1, "feature": "hidden"},
    ],
)
def test_a_term_that_compares_the_student_with_itself_is_an_error(offer, term):
    offer(ce, "losses", "ce")
    offer(plain_mse, "losses", "plain")
    with pytest.raises(ConfigError, match=r"terms\.0\.teacher: is student.*compares the student with itself"):
        build({**term, "teacher": "student"})


def test_a_layer_map_does_not_read_the_student_as_teacher(offer):
    offer(plain_mse, "losses", "plain")
    offer(lambda student_layers, teacher_layers: [(1, 1)], "layer_maps", "one")
    rule = {"name": "one", "feature": "hidden", "loss": "plain", "teacher": "student"}
    with pytest.raises(ConfigError, match=r"layer_map\.teacher: a layer map pairs"):
        Objective(DistillationConfig(kd_loss_weight=0, layer_map=rule))


def test_a_wrong_path_names_the_student(offer):
    offer(plain_mse, "losses", "plain")
    objective = build({"loss": "plain", "teacher": "student", "layer_S": "0", "layer_T": "7"})
    with pytest.raises(ConfigError, match=r"terms\.0\.layer_T: no module '7' in the student"):
        objective.connect(nn.Sequential(nn.Linear(4, 4)))


def test_a_loss_that_requests_nothing_of_a_teacher_needs_none(offer, heads):
    offer(lambda student_logits, labels: student_logits.logsumexp(-1).mean() + labels.sum(), "losses", "alone")
    first, _ = heads
    objective = build({"loss": "alone"})
    labels = torch.tensor([0, 1, 2])
    assert objective.reads_of_teachers() == {}
    mask = torch.tensor([True, True, False])
    found = objective(student={"logits": first, "labels": labels, "logits_mask": mask}).total
    torch.testing.assert_close(found, first[:2].logsumexp(-1).mean() + 1)


def test_what_each_term_reads_of_a_teacher_is_listed(offer):
    offer(ce, "losses", "ce")
    offer(plain_mse, "losses", "plain")
    offer(lambda student_logits: student_logits.mean(), "losses", "alone")
    offer(lambda teacher_logits, temperature: temperature, "temperature_schedulers", "reads")
    offer(lambda student_logits, temperature: student_logits.mean() * temperature, "losses", "hot")
    objective = build(
        {"loss": "ce"},
        {"loss": "plain", "layer_S": 0, "layer_T": 1, "feature": "hidden"},
        {"loss": "alone"},
        {"loss": "hot", "temperature_scheduler": "reads"},
    )
    assert objective.reads_of_teachers() == {
        "ce": ("teacher_logits",),
        "hidden_plain_0_1": ("teacher_features",),
        "hot": ("teacher_logits",),
    }
