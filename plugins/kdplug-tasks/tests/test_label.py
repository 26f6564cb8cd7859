"""Which class a label means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdplug import ConfigError
from kdplug_tasks.data.label import NO_LABEL, Labels, find_labels
from kdplug_tasks.data.table import Table


def _table(*values, classes=()):
    return Table("train.csv", "data.train", {"label": list(values)}, {"label": tuple(classes)} if classes else {})


def _teacher(*names):
    return SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names)))


def test_labels_of_the_data_are_sorted_numbers_by_size():
    assert find_labels(None, None, None, ["b", "a", None, "b"]).names == ("a", "b")
    assert find_labels(None, None, None, ["10", "9", "1"]).names == ("1", "9", "10")


def test_a_trained_teachers_order_decides():
    labels = find_labels(None, _teacher("pos", "neg"), None, ["neg", "pos"])
    assert labels.indices(_table("neg", "pos", "1"), "label", optional=False) == [1, 0, 1]


def test_numbers_of_a_dataset_mean_its_own_names_and_not_the_teachers_numbers():
    labels = find_labels(None, _teacher("pos", "neg"), ("neg", "pos"), [0, 1])
    assert labels.indices(_table(0, 1, classes=("neg", "pos")), "label", optional=False) == [1, 0]


def test_a_teacher_without_names_takes_those_of_the_dataset():
    assert find_labels(None, _teacher("LABEL_0", "LABEL_1"), ("no", "yes"), [0]).names == ("no", "yes")


def test_names_in_the_data_and_numbers_in_the_teacher_need_to_be_told():
    labels = find_labels(None, _teacher("LABEL_0", "LABEL_1"), None, ["no"])
    with pytest.raises(
        ConfigError, match=r"the teacher knows its 2 classes by number only\. Write labels: their names"
    ):
        labels.indices(_table("no"), "label", optional=False)
    assert labels.indices(_table("1", 0), "label", optional=False) == [1, 0]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("possitive", "row 2 of train.csv: unknown label 'possitive'. Did you mean 'positive'"),
        ("7", r"label id 7 is out of range: there are 2 \(negative, positive\)"),
        ("-3", "label id -3 is out of range"),
        ("", "there is no label"),
        (None, "there is no label"),
    ],
)
def test_what_is_wrong_with_a_label(value, told):
    with pytest.raises(ConfigError, match=told):
        Labels(("negative", "positive")).indices(_table("positive", value), "label", optional=False)


def test_rows_to_distil_on_may_lack_a_label():
    found = Labels(("a", "b")).indices(_table("a", "", None, -1, -100), "label", optional=True)
    assert found == [0, *[NO_LABEL] * 4]


@pytest.mark.parametrize(
    ("given", "teacher", "told"),
    [
        (["a", "a"], None, "a name is there twice"),
        (["a", "b", "c"], _teacher("x", "y"), "are 3, and the teacher has 2"),
        (None, None, "must hold at least two labels, got x"),
    ],
)
def test_labels_that_cannot_be_meant(given, teacher, told):
    with pytest.raises(ConfigError, match=told):
        find_labels(given, teacher, None, ["x", "x"])
