"""Labels that are no single name or number, or one label written in two ways: an error, never another class."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

import kdplug
from kdplug_tasks.data.classes import find_labels
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table
from kdplug_tasks.targets.category import Category
from kdplug_tasks.targets.score import Score
from kdplug_tasks.targets.tag_set import TagSet


def source(column: str, *cells: Any) -> Source:
    table = Table("rows.jsonl", "data.train", {column: list(cells)})
    return Source(table, table, table, table)


@pytest.mark.attack("a label that is a list, a mapping, bytes or an array")
@pytest.mark.parametrize(
    "cell", [["x", "y"], [], {"x": 1}, b"x", numpy.array([0, 1]), float("inf")], ids=lambda cell: type(cell).__name__
)
def test_a_label_is_one_name_or_number(cell: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 2 of rows\.jsonl: label must be one name or number, got"):
        Category(None).settle(source("label", "x", cell, "y"), None)


@pytest.mark.attack("a label that is a list, a mapping, bytes or an array")
@pytest.mark.parametrize("cell", [{"x": 1, "y": 0}, [["x"], "y"], ["x", None]], ids=str)
def test_each_of_several_labels_is_one_name_or_number(cell: Any) -> None:
    target, data = TagSet(["x", "y"], ","), source("labels", ["x", "y"], cell)

    def read() -> None:
        target.settle(data, None)
        target.read(data.train, optional=False)

    with pytest.raises(kdplug.ConfigError, match=r"row 2 of rows\.jsonl: labels must be one name or number, got"):
        read()


@pytest.mark.attack("multi-hot vectors where class numbers are expected")
@pytest.mark.parametrize("cell", [[0, 1, 1], [0.0, 0.0, 1.0], [True, False], "0,1,1"], ids=str)
def test_a_multi_hot_vector_is_not_a_list_of_class_numbers(cell: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 2 of rows\.jsonl: .* looks like a multi-hot vector"):
        TagSet(None, ",").settle(source("labels", [1, 2], cell), None)


@pytest.mark.attack("multi-hot vectors where class numbers are expected")
@pytest.mark.parametrize(
    "cells", [([0, 1, 2], [0, 1]), ([1], [0]), ("0, 1", "2"), (["x", "y"], ["x", "x"]), ([], "x,y")]
)
def test_class_numbers_and_repeated_names_are_read(cells: Any) -> None:
    TagSet(None, ",").settle(source("labels", *cells), None)


@pytest.mark.attack("multi-hot vectors where class numbers are expected")
@pytest.mark.parametrize("names", [None, ["a", "b"]])
@pytest.mark.parametrize("cells", [([0, 1], [1, 0]), ([0, 1], [0, 1]), ("0,1", "1,0"), ([0.0, 1.0], None, [1.0, 0.0])])
def test_a_value_for_each_of_two_classes_is_not_two_class_numbers(names: list[str] | None, cells: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 1 of rows\.jsonl: .* may be a value per class or the numbers"):
        TagSet(names, ",").settle(source("labels", *cells), None)


@pytest.mark.attack("multi-hot vectors where class numbers are expected")
@pytest.mark.parametrize("cells", [([0, 1], [1]), ([0, 1], []), ([0, 1, 2], [0, 1])])
def test_a_row_with_both_of_two_classes_is_read(cells: Any) -> None:
    TagSet(None, ",").settle(source("labels", *cells), None)


ALIKE = [
    ("1", "1.0"),
    ("0", "0."),
    (True, "1"),
    ("True", "true"),
    ("café", "cafe\u0301"),
    ("x", "x\u200b"),
    ("x", "\ufeffx"),
]


@pytest.mark.attack("one class written in two ways")
@pytest.mark.parametrize(("one", "two"), ALIKE)
def test_one_class_in_two_spellings_is_an_error(one: Any, two: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 2 of rows\.jsonl: the label .* is .* written differently"):
        find_labels(None, None, source("label", one, two, "other"), "label")


@pytest.mark.attack("one class written in two ways")
@pytest.mark.parametrize(("one", "two"), [("01", "1"), ("1.5", "1"), ("b", "B"), ("👨‍👩", "👨👩"), ("-1", "1")])
def test_names_that_differ_are_classes_of_their_own(one: str, two: str) -> None:
    assert len(find_labels(None, None, source("label", one, two), "label")) == 2


@pytest.mark.attack("a number that Python reads and its writer did not mean")
@pytest.mark.parametrize("cell", ["1_000", True, "1e39", -1e300], ids=str)
def test_a_score_that_is_no_number_in_float32_is_an_error(cell: Any) -> None:
    with pytest.raises(kdplug.ConfigError, match=r"row 2 of rows\.jsonl: the label must be a finite number"):
        Score().read(source("label", 1, cell).train, optional=True)
