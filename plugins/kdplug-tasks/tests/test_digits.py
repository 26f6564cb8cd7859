"""The digits task: data parts and model outputs."""

from __future__ import annotations

import pytest
import torch

from kdplug import Task
from kdplug_tasks.digits import ConvNet, Digits


def _labels(task, part):
    return task.data(part).labels


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _batch(task, part="distillation", size=64):
    data = task.data(part)
    return task.collate([data[index] for index in range(size)])


def test_digits_is_a_task():
    assert isinstance(Digits(), Task)


def test_the_student_has_at_least_twenty_times_fewer_parameters():
    task = Digits()
    assert (_parameters(task.build_teacher()), _parameters(task.build_student())) == (94_186, 3_148)
    assert 20 * _parameters(task.build_student()) <= _parameters(task.build_teacher())


@pytest.mark.parametrize("per_class", [1, 10, 90])
def test_the_student_sees_exactly_the_labels_it_is_given(per_class):
    task = Digits(labels_per_class=per_class)
    visible = _labels(task, "distillation")
    assert visible[visible != -100].bincount().tolist() == [per_class] * 10
    assert _labels(task, "baseline").bincount().tolist() == [per_class] * 10


def test_a_visible_label_is_the_true_one():
    task = Digits()
    visible, true = _labels(task, "distillation"), _labels(task, "teacher")
    assert torch.equal(visible[visible != -100], true[visible != -100])


def _images(task, *parts):
    return {image.numpy().tobytes() for part in parts for image in task.data(part).images}


def test_no_image_that_is_held_out_is_trained_on():
    task = Digits()
    trained, validation, test = (
        _images(task, *parts) for parts in (("teacher", "distillation", "baseline"), ("validation",), ("test",))
    )
    assert not trained & validation
    assert not trained & test
    assert not validation & test
    assert [len(task.data(part)) for part in ("teacher", "distillation", "validation", "test")] == [
        1000,
        1000,
        200,
        597,
    ]


def test_the_test_images_are_those_of_a_split_without_validation():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    _, test = train_test_split(range(1797), test_size=597, stratify=digits.target, random_state=0)
    assert Digits().data("test").labels.tolist() == digits.target[test].tolist()
    assert torch.equal(Digits().data("test").images.squeeze(1), torch.tensor(digits.images[test]).float() / 16)


def test_the_split_is_the_same_whatever_the_seed():
    torch.manual_seed(1)
    one = Digits(label_seed=0)
    torch.manual_seed(2)
    other = Digits(label_seed=1)
    assert torch.equal(one.data("test").images, other.data("test").images)
    assert not torch.equal(_labels(one, "distillation"), _labels(other, "distillation"))


def test_both_splits_hold_every_digit_in_the_same_share():
    task = Digits()
    train, validation, test = (
        _labels(task, part).bincount() / len(task.data(part)) for part in ("teacher", "validation", "test")
    )
    assert (train - test).abs().max() < 0.005
    assert (train - validation).abs().max() < 0.01


def test_feature_maps_of_teacher_and_student_have_the_same_positions():
    task = Digits()
    batch = _batch(task)
    teacher = task.teacher_adaptor(batch, task.build_teacher()(**batch))["hidden"]
    student = task.student_adaptor(batch, task.build_student()(**batch))["hidden"]
    assert [tuple(h.shape) for h in teacher] == [(64, 64, 32), (64, 16, 64), (64, 4, 128)]
    assert [h.shape[:2] for h in student] == [h.shape[:2] for h in teacher]


def test_images_without_a_label_add_nothing_to_the_cross_entropy():
    model = ConvNet((4, 4), classes=10).eval()
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([3, -100, 7, -100, -100, 1])
    kept = labels != -100
    torch.testing.assert_close(model(images, labels)["losses"], model(images[kept], labels[kept])["losses"])


def test_a_batch_without_labels_has_a_cross_entropy_that_counts_nothing_and_finite_gradients():
    model = ConvNet((4, 4), classes=10)
    loss = model(torch.rand(3, 1, 8, 8), torch.full((3,), -100))["losses"]
    loss.total.backward()
    assert loss == (0, 0)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_accuracy_is_the_share_of_right_answers():
    task = Digits()
    answers = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3]), 10).float()
    batch = {"images": answers, "labels": torch.tensor([0, 1, 2, 9])}
    assert task.evaluate(lambda images: {"logits": images}, [batch]) == {"accuracy": 0.75}


def test_a_prediction_names_both_digits_and_the_probability_of_its_own():
    answers = 3 * torch.nn.functional.one_hot(torch.tensor([4, 7]), 10).float()
    batch = {"images": answers, "labels": torch.tensor([4, 9])}
    rows = Digits().predict(lambda images: {"logits": images}, [batch]).rows
    chance = pytest.approx(float(answers.softmax(-1).max()))
    assert rows == [
        {"score": 1.0, "label": 4, "prediction": 4, "probability": chance},
        {"score": 0.0, "label": 9, "prediction": 7, "probability": chance},
    ]


def test_what_a_run_prints_says_how_few_labels_the_student_has():
    said = Digits(labels_per_class=3).about()
    assert "all 1000 training images" in said
    assert "only 30 of them (3 of each digit)" in said
    assert "Checkpoints are chosen on 200 other images, and the accuracy is measured on 597 more." in said
