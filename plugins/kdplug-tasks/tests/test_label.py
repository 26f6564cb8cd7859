"""The class of a label: one rule for a column, in every part of the data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdplug import ConfigError
from kdplug_tasks.data.classes import find_labels
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.data.source import Source
from kdplug_tasks.data.table import Table


def _table(part, values, classes=()):
    known = {"label": tuple(classes)} if classes else {}
    return Table(f"{part}.csv", f"data.{part}", {"label": list(values)}, known)


def _source(train, test=(), distillation=None, classes=(), validation=()):
    parts = {"train": train, "validation": validation, "test": test}
    tables = {part: _table(part, values, classes) for part, values in parts.items()}
    unlabelled = tables["train"] if distillation is None else _table("distillation", distillation, classes)
    return Source(distillation=unlabelled, **tables)


def _teacher(*names):
    ids = dict(enumerate(names))
    return SimpleNamespace(num_labels=len(names), id2label=ids, label2id={name: place for place, name in ids.items()})


def _read(source, given=None, teacher=None):
    """The class names, and the classes of train and test."""
    labels = find_labels(given, teacher, source, "label", may_lack=True)
    rows = [labels.indices(table, "label", optional=False) for table in (source.train, source.test)]
    return labels.names, *rows


def test_labels_of_the_data_are_sorted_numbers_by_size():
    assert _read(_source(["b", "a", "b"], ["a"])) == (("a", "b"), [1, 0, 1], [0])
    assert _read(_source(["10", "9", 1])) == (("1", "9", "10"), [2, 1, 0], [])
    assert _read(_source(["10", "09", "1"]))[0] == ("09", "1", "10")


def test_whole_numbers_that_a_file_holds_as_fractions_are_the_same_labels():
    assert _read(_source([2.0, 1.0], ["1", 2])) == (("1", "2"), [1, 0], [0, 1])


def test_a_trained_teachers_order_decides():
    assert _read(_source(["neg", "pos"]), teacher=_teacher("pos", "neg")) == (("pos", "neg"), [1, 0], [])
    assert _read(_source([1, "0"], ["1"]), teacher=_teacher("pos", "neg")) == (("pos", "neg"), [1, 0], [1])


def test_numbers_of_a_dataset_mean_its_own_names_and_not_the_teachers_numbers():
    source = _source([0, 1], [1], classes=("neg", "pos"))
    assert _read(source, teacher=_teacher("pos", "neg")) == (("pos", "neg"), [1, 0], [0])


def test_a_number_beyond_the_classes_of_a_dataset_is_no_number_of_the_teacher():
    source = _source([0, 1], [2], classes=("neg", "pos"))
    message = r"^data\.test: row 1 of test\.csv: label id 2 is out of range: the dataset names 2 classes \(neg, pos\)"
    with pytest.raises(ConfigError, match=message):
        _read(source, teacher=_teacher("neutral", "pos", "neg"))


def test_a_teacher_without_names_takes_those_of_the_dataset():
    source = _source([0], classes=("no", "yes"))
    assert _read(source, teacher=_teacher("LABEL_0", "LABEL_1"))[0] == ("no", "yes")


def test_names_in_the_data_need_labels_if_the_teacher_has_only_numbers():
    teacher = _teacher("LABEL_0", "LABEL_1")
    message = r"the teacher has no names for its 2 classes\. Write labels: the names of the classes"
    with pytest.raises(ConfigError, match=message):
        _read(_source(["no"]), teacher=teacher)
    assert _read(_source(["1", 0]), teacher=teacher)[1] == [1, 0]
    assert _read(_source(["LABEL_1", "LABEL_0"]), teacher=teacher)[1] == [1, 0]


def test_numbers_from_one_in_train_and_from_zero_in_test_are_no_classes_of_one_column():
    """They used to be names if such a name existed and numbers otherwise, so '0' and '1' meant the same class."""
    message = r"^data\.test: row 1 of test\.csv: unknown label '0'\. Since some class names are numbers.* The labels are 1, 2, 3, 4\."
    with pytest.raises(ConfigError, match=message):
        _read(_source([1, 2, 3, 4], [0, 1, 2, 3]))


@pytest.mark.parametrize("origin", ["given", "teacher"])
def test_no_number_is_a_place_where_names_are_numbers(origin):
    names = {"given": {"given": ["1", "2", "3"]}, "teacher": {"teacher": _teacher("1", "2", "3")}}[origin]
    assert _read(_source([1, 2], [3]), **names)[1:] == ([0, 1], [2])
    with pytest.raises(ConfigError, match=r"row 2 of train\.csv: unknown label '0'"):
        _read(_source([1, 0], [2]), **names)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["pos", "neg"], ["0", "1"], r"^data\.test: row 1 of test\.csv: the label '0' is a number, but row 1 of train\.csv has"),
        (["0", "1"], ["pos", "neg"], r"^data\.train: row 1 of train\.csv: the label '0' is a number, but row 1 of test\.csv has"),
        (["pos", 1], [], r"^data\.train: row 2 of train\.csv: the label '1' is a number, but row 1 of train\.csv has the name 'pos'"),
    ],
)  # fmt: skip
def test_names_and_numbers_do_not_go_together(train, test, message):
    with pytest.raises(ConfigError, match=message):
        _read(_source(train, test), teacher=_teacher("neg", "pos"))


def test_labels_of_rows_to_distil_on_follow_the_same_rule():
    with pytest.raises(ConfigError, match=r"^data\.distillation: row 2 of .* the label '0' is a number, but row 1 of"):
        _read(_source(["a", "b"], [], [None, "0"]), given=["a", "b"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("possitive", "row 2 of train.csv: unknown label 'possitive'. Did you mean 'positive'"),
        (
            "",
            "there is no label. Write one, remove the row, or move rows without a label to a file named in data.distillation",
        ),
        (None, "there is no label"),
        ("²", "unknown label '²'"),
        ("9" * 5000, "unknown label '999"),
    ],
)
def test_what_is_wrong_with_a_label(value, message):
    with pytest.raises(ConfigError, match=message):
        _read(_source(["positive", value]), given=["negative", "positive"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("7", r"label id 7 is out of range: there are 2 classes \(negative, positive\)"),
        ("-3", "label id -3 is out of range"),
    ],
)
def test_a_number_has_to_be_that_of_a_class(value, message):
    with pytest.raises(ConfigError, match=rf"row 2 of train\.csv: {message}"):
        _read(_source([1, value]), given=["negative", "positive"])


def test_rows_to_distil_on_may_lack_a_label():
    source = _source(["a", "b"], [], ["a", "", None, -1, -100, "-1", float("nan")])
    found = find_labels(None, None, source, "label", may_lack=True)
    assert found.indices(source.distillation, "label", optional=True) == [0, *[NO_LABEL] * 6]


def test_minus_one_is_a_class_where_the_training_data_have_it():
    assert _read(_source([-1, 1], [-1])) == (("-1", "1"), [0, 1], [0])


@pytest.mark.parametrize(
    ("given", "teacher", "message"),
    [
        (["a", "a"], None, r"^labels: several classes have the name 'a'\. Set labels to"),
        (["a", " a"], None, r"^labels: several classes have the name 'a'"),
        (["a", "b", "c"], _teacher("x", "y"), "^labels: has 3 names, but the teacher has 2 outputs"),
        (
            ["y", "x"],
            _teacher("x", "y"),
            r"^labels: is not in the order of the teacher's outputs: x, y\. labels\[0\] is 'y', which is output 1",
        ),
        (None, _teacher("x", "x"), r"^labels: several classes have the name 'x'"),
        (None, None, r"^data\.train: must have at least two different labels, got x"),
    ],
)
def test_invalid_labels(given, teacher, message):
    with pytest.raises(ConfigError, match=message):
        _read(_source(["x", "x"]), given=given, teacher=teacher)


VALUES = st.one_of(st.integers(-2, 5), st.sampled_from(["a", "b", "1", "2", "0", "01", " a", "1.0"]))


@given(
    st.lists(VALUES, min_size=1, max_size=8),
    st.lists(VALUES, max_size=8),
    st.none() | st.permutations(["a", "b", "0", "1", "2"]).map(lambda names: names[:3]),
)
def test_labels_that_differ_never_mean_one_class(train, test, names):
    """Equal tokenizers always agree, whatever their names."""
    try:
        _, *rows = _read(_source(train, test), teacher=None if names is None else _teacher(*names))
    except ConfigError:
        return
    pairs = {(str(value).strip(), place) for value, place in zip([*train, *test], [*rows[0], *rows[1]], strict=True)}
    assert len({text for text, _ in pairs}) == len({place for _, place in pairs}) == len(pairs)


def test_classes_of_the_test_part_that_the_training_part_lacks_are_named():
    def untrained(train, test, **more):
        return find_labels(more.pop("given", None), more.pop("teacher", None), _source(train, test), "label", **more)

    assert untrained(["a", "b"], ["b"]).about_untrained == ""
    found = untrained(["a", "b"], ["c", "b", "d"], given=["a", "b", "c", "d"])
    assert found.about_untrained == " Classes in the validation or test data but not in the training data: c, d."
    assert untrained([0, 0], [1, 0], teacher=_teacher("neg", "pos")).untrained == ("pos",)
    assert untrained(["a", "-1"], ["b", "-1"], given=["a", "b"], may_lack=True).untrained == ("b",)
    many = [f"c{place}" for place in range(20)]
    assert untrained(many[:2], many, given=many).about_untrained.endswith(" c2, c3, c4, c5, c6, c7, c8, c9, ….")


def test_rows_that_are_held_out_of_the_training_data_keep_their_class():
    train, held_out = (_table("train", values) for values in (["a", "b", "a"], ["c"]))
    for part in ("validation", "test"):
        other = "test" if part == "validation" else "validation"
        source = Source(train, train, **{part: held_out, other: _table(other, ["a"])})
        found = find_labels(None, None, source, "label")
        assert (found.names, found.untrained) == (("a", "b", "c"), ("c",))


def test_classes_that_only_the_validation_data_lack_are_known():
    found = find_labels(["a", "b", "c", "d"], None, _source(["a", "b"], ["a", "c"], validation=["b"]), "label")
    assert found.unvalidated == ("a", "c")
