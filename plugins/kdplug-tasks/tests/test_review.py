"""Warnings of what a task finds in its data and of a teacher that does not fit them."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from task_scene import BERT, TRAINED, recipe, reviews, save_model, task_of, tokenizer, write_csv

import kdplug
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.targets.category import review_accuracy

PARTS = ("train", "validation", "test")
LONG = {"text": "film " * 40, "label": "pos"}
UNTRAINED = {
    "teacher": {"config": BERT, **TRAINED},
    "tokenizer": "bytes",
    "student": {"config": {"num_hidden_layers": 1}},
    "max_length": 24,
}


def _task(folder, rows, name="text-classification", **more):
    each_class = [{"text": "a film", "label": label} for label in sorted({str(row.get("label")) for row in rows})]
    data = {
        "train": write_csv(folder / "rows.csv", rows),
        "validation": write_csv(folder / "validation.csv", each_class),
        "test": write_csv(folder / "test.csv", reviews(4, seed=9)),
    }
    if name == "multi-label":
        data["columns"] = {"labels": "label"}
    return {"name": name, **UNTRAINED, "data": data, **more}


def _found(folder, rows, name="text-classification", **more):
    task = task_of(**_task(folder, rows, name, **more))
    task.check()
    return _unrepeated(task.review_data())


def _unrepeated(found):
    """Leave out warnings of rows that several parts share, as the small files here do."""
    return [(setting, message) for setting, message in found if "have the same text as" not in message]


def _short(count, start=0):
    return [
        {"text": f"a {row['label']} {start + place}", "label": row["label"]} for place, row in enumerate(reviews(count))
    ]


@pytest.mark.parametrize("name", ["text-classification", "multi-label"])
def test_a_class_with_one_row_is_named(tmp_path, name):
    ((setting, message),) = _found(tmp_path, [*_short(8), {"text": "x", "label": "poss"}], name, max_length=40)
    assert setting == "data.train"
    assert message.startswith("the class 'poss' occurs in only one row of the training data in ")


@pytest.mark.parametrize("label", ["nan", "NaN", "None", "NA", "null"])
def test_a_class_with_the_name_of_a_missing_value_is_named(tmp_path, label):
    rows = [*_short(8), *[{"text": "x", "label": label}] * 2]
    ((setting, message),) = _found(tmp_path, rows, max_length=40)
    assert setting == "data.train"
    assert f"has the class '{label}', as some programs write a missing value" in message
    assert not _found(tmp_path, rows, max_length=40, labels=["neg", "pos", label])


def test_empty_texts_are_counted(tmp_path):
    ((setting, message),) = _found(tmp_path, [*_short(8), *[{"text": " ", "label": "pos"}] * 2], max_length=40)
    assert setting == "data.train"
    assert message.startswith("text is empty in 2 of 10 rows, first in row 9 of ")


@pytest.mark.parametrize("name", ["text-classification", "multi-label"])
def test_the_share_of_rows_that_are_cut_is_shown(tmp_path, name):
    ((setting, message),) = _found(tmp_path, [*_short(12), *[LONG] * 4], name, max_length=40)
    assert setting == "max_length"
    assert message == (
        "18.2% of the rows are longer than max_length, 40 tokens, and are truncated; the longest has 202 tokens"
    )


def test_rows_of_a_regression_that_are_cut_are_counted(tmp_path):
    rows = [{"text": "film " * 40, "label": place} for place in range(4)]
    data = {part: write_csv(tmp_path / f"{part}_numbers.csv", rows) for part in PARTS}
    ((setting, message),) = _found(tmp_path, rows, "regression", data=data)
    assert setting == "max_length"
    assert message.startswith("100.0% of the rows")


def test_sentences_and_tags_are_reviewed(tmp_path):
    rows = [
        {"tokens": "a film", "tags": "D N"},
        {"tokens": "the plot " * 8, "tags": "D N " * 8},
        {"tokens": "so", "tags": "nan"},
    ]
    data = {part: write_csv(tmp_path / f"{part}_tags.csv", rows) for part in PARTS}
    single, missing, cut = _found(tmp_path, rows, "token-classification", data=data)
    assert "the class 'nan' occurs in only one row of the training data" in single[1]
    assert "has the class 'nan', as some programs" in missing[1]
    assert cut[0] == "max_length"
    assert cut[1].startswith("33.3% of the rows are longer")


def test_sound_data_are_not_warned_of(tmp_path):
    assert not _found(tmp_path, _short(8), max_length=40)


def test_plan_and_run_show_the_warnings(tmp_path):
    task = _task(tmp_path, [*reviews(8), *[LONG] * 4])
    (found,) = [one for one in plan_recipe(recipe(task, tmp_path / "out")).warnings if one.check == "unexpected_data"]
    assert found.field == "task.max_length"
    console = Console(file=io.StringIO(), width=300)
    run_recipe(recipe(task, tmp_path / "out"), console=console)
    assert console.file.getvalue().count(f"Warning: task.max_length: {found.message}") == 1


def _outputs(logits, labels):
    return kdplug.Outputs.read({"logits": logits, "labels": labels}, "teacher")


@pytest.mark.parametrize(("share", "is_warned_of"), [(0.5, True), (0.9, False)])
def test_a_teacher_at_chance_is_warned_of(share, is_warned_of):
    labels = torch.arange(64) % 2
    right = torch.arange(64) // 2 < share * 32
    chosen = torch.where(right, labels, 1 - labels)
    logits = torch.nn.functional.one_hot(chosen, 2).float()
    found = list(review_accuracy([_outputs(logits[:32], labels[:32]), _outputs(logits[32:], labels[32:])]))
    assert [setting for setting, _ in found] == ["teacher.path"] * is_warned_of


@pytest.mark.parametrize("labels", [torch.arange(8) % 2, torch.zeros(64).long(), torch.full((64,), -100)])
def test_too_few_labels_or_classes_are_no_evidence(labels):
    assert not list(review_accuracy([_outputs(torch.zeros(len(labels), 2), labels)]))


def test_a_plan_warns_of_a_random_head(tmp_path):
    brings = tokenizer()
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    auto = "AutoModelForSequenceClassification"
    path = save_model(tmp_path / "teacher", auto, BERT, brings=brings, vocab_size=len(brings), pad_token_id=0, **names)
    task = _task(tmp_path, reviews(64), teacher=path, max_length=40)
    task.pop("tokenizer")
    warnings = [one for one in plan_recipe(recipe(task, tmp_path / "out")).warnings if one.check == "unexpected_data"]
    assert [one.field for one in warnings] == ["task.teacher.path"]
    assert "labelled items in the first batches, no better than chance" in warnings[0].message


def _shared(**data):
    return list(task_of(name="text-classification", **UNTRAINED, data=data).review_data())


def test_a_test_file_that_is_the_training_file_is_named(tmp_path):
    rows, more = (write_csv(tmp_path / f"{start}.csv", _short(8, start)) for start in (0, 8))
    (tmp_path / "link.csv").symlink_to(rows)
    for test in (rows, str(tmp_path / "link.csv")):
        ((setting, message),) = _shared(train=rows, validation=more, test=test)
        assert setting == "data.test"
        assert message.startswith(f"the test data and the training data are both {test!r}: the metrics are measured on")
    assert not _shared(train=rows, validation=0.5, test=0.25)


def test_validation_data_that_another_part_has_are_named(tmp_path):
    rows, more = (write_csv(tmp_path / f"{start}.csv", _short(8, start)) for start in (0, 8))
    ((setting, message),) = _shared(train=rows, validation=rows, test=more)
    assert setting == "data.validation"
    assert message == (
        f"the validation data and the training data are both {rows!r}: checkpoints are chosen on examples that the models were "
        "trained on. Use other data, or a fraction such as validation: 0.1 to hold out rows of train"
    )
    ((setting, message),) = _shared(train=rows, validation=more, test=more)
    assert setting == "data.validation"
    assert "the validation data and the test data are both" in message
    found = _shared(train=rows, distillation=more, validation=more, test=more)
    assert [setting for setting, _ in found] == ["data.test", "data.validation", "data.validation"]
    assert "that the student was distilled on" in found[0][1]
    assert "that the student was distilled on" in found[1][1]


def test_rows_with_the_text_of_another_part_are_counted(tmp_path):
    train = write_csv(tmp_path / "train.csv", _short(20))
    validation, test = (
        write_csv(tmp_path / f"{start}.csv", [*_short(6, start), {"text": " a pos  1 ", "label": "pos"}])
        for start in (20, 30)
    )
    found = _shared(train=train, validation=validation, test=test)
    assert [setting for setting, _ in found] == ["data.test", "data.validation", "data.validation"]
    assert found[0][1] == (
        f"1 of 7 rows of the test data have the same text as a row of the training data, the first is row 7 of {test} "
        "(line 8): the metrics are measured on examples that the models were trained on. Remove these rows from one of "
        "the two"
    )
    assert "of the validation data have the same text as a row of the test data" in found[2][1]


def test_rows_that_are_held_out_may_be_repetitions_of_others(tmp_path):
    rows = write_csv(tmp_path / "rows.csv", [*_short(20), *_short(20)])
    found = _shared(train=rows, validation=0.2, test=0.2)
    assert {setting for setting, _ in found} == {"data.validation", "data.test"}
    assert all("have the same text as a row of the training data" in message for _, message in found[:2])
    assert not _shared(train=write_csv(tmp_path / "other.csv", _short(40)), validation=0.2, test=0.2)


def test_a_class_that_the_validation_data_lack_is_named_with_its_fix(tmp_path):
    rows = [*_short(24), *[{"text": f"an odd film {place}", "label": "odd"} for place in range(2)]]
    train, test, part = (write_csv(tmp_path / f"{name}.csv", rows) for name in ("train", "test", "part"))
    few = write_csv(tmp_path / "few.csv", _short(4))
    ((setting, message),) = _unrepeated(_shared(train=train, validation=few, test=test))
    assert setting == "data.validation"
    assert message == (
        "the class 'odd' does not occur in the validation data, on which checkpoints and settings are chosen. Add rows to "
        f"{few}"
    )
    assert not _unrepeated(_shared(train=train, validation=part, test=test))
    (message,) = [
        message
        for setting, message in _unrepeated(_shared(train=train, validation=0.01, test=test))
        if setting == "data.validation"
    ]
    assert message.endswith("Increase data.validation, or set it to a file or split with rows of each class")


def test_a_tag_that_the_validation_data_lack_is_named(tmp_path):
    rows = [{"tokens": "a film", "tags": "D N"}, {"tokens": "the plot", "tags": "D N"}]
    train = [*rows, *[{"tokens": "it is", "tags": "P V"}] * 2]
    data = {part: write_csv(tmp_path / f"{part}_tags.csv", train if part == "train" else rows) for part in PARTS}
    ((setting, message),) = _found(tmp_path, rows, "token-classification", data=data)
    assert setting == "data.validation"
    assert message.startswith("the classes 'P', 'V' do not occur in the validation data")
