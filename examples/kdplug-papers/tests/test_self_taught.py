"""Formulas of the self-taught methods, and the laws of their entries."""

from __future__ import annotations

import math

import pytest
import torch
from kdplug_papers.mixing import Mixup
from kdplug_papers.self_taught import mean_teacher, sigmoid_rampup, tf_kd
from kdplug_papers.served import HttpTeacher
from self_taught_recipes import served

import kdplug
from kdplug.testing import LossLaws, SchedulerLaws, TeacherLaws


class TestTfKd(LossLaws):
    entry = "kdplug-papers:tf_kd"


class TestMeanTeacher(LossLaws):
    entry = "kdplug-papers:mean_teacher"
    non_negative = zero_at_equality = True


class TestRampup(SchedulerLaws):
    entry = "kdplug-papers:sigmoid_rampup"
    at_end, direction = 1.0, "rising"


class TestHttpTeacher(TeacherLaws):
    entry = "kdplug-papers:http_teacher"
    settings = {"url": served().url, "model": "net-9"}  # noqa: RUF012

    def batch(self):
        return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def test_tf_kd_is_the_divergence_from_the_virtual_teacher():
    logits, labels, temperature, correct = torch.randn(4, 3), [2, 0, 1, -100], 4.0, 0.9
    total, count = 0.0, 0
    for row, label in zip(logits.tolist(), labels, strict=True):
        if label < 0:
            continue
        wanted = [correct if place == label else (1 - correct) / 2 for place in range(3)]
        p, q = ([math.exp(one / temperature) for one in side] for side in (wanted, row))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        count += 1
    found = tf_kd(logits, torch.tensor(labels), temperature, correct=correct)
    assert float(found.total) == pytest.approx(total, abs=1e-6)
    assert float(found.count) == count == 3
    with pytest.raises(kdplug.SettingError, match="correct"):
        tf_kd(logits, torch.tensor(labels), correct=1.5)


def test_the_consistency_cost_is_the_squared_error_of_the_probabilities():
    student, teacher = torch.randn(2, 4, 3)
    found = mean_teacher(student, teacher)
    total = sum(
        sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) / 3
        for one, two in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True)
    )
    assert float(found.total) == pytest.approx(total, abs=1e-6)
    assert found.count == 4


def test_the_ramp_is_that_of_the_paper():
    assert [sigmoid_rampup(one, share=0.5) for one in (0.0, 0.5, 1.0)] == [math.exp(-5), 1.0, 1.0]
    assert sigmoid_rampup(0.25, share=0.5) == pytest.approx(math.exp(-1.25))


def test_mixup_mixes_images_and_labels_alike():
    images, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(0)
    mixed, probabilities = Mixup(3)((images, labels))
    torch.manual_seed(0)
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    order = torch.randperm(6)
    for place in range(6):
        torch.testing.assert_close(mixed[place], share * images[place] + (1 - share) * images[order[place]])
        wanted = torch.zeros(3)
        wanted[labels[place]] += share
        wanted[labels[order[place]]] += 1 - share
        torch.testing.assert_close(probabilities[place], wanted)


def test_a_server_that_is_away_is_asked_again(monkeypatch):
    waited = []
    monkeypatch.setattr("kdplug_papers.served.time.sleep", waited.append)
    away = HttpTeacher(url="http://127.0.0.1:9", model="net-9", retries=2)
    with pytest.raises(OSError, match="refused"):
        away(torch.randn(2, 6))
    assert waited == [1.0, 2.0]
    assert away.fingerprint() == served().fingerprint()
    with pytest.raises(kdplug.SettingError, match="url"):
        HttpTeacher(url="file:///etc/passwd", model="x")
