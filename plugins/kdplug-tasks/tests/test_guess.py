"""``kdplug new --from``: the task, columns and models that are inferred from a user's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from task_scene import BERT
from typer.testing import CliRunner

import kdplug
from kdplug.cli.app import app
from kdplug.config.text import read_document
from kdplug_tasks.data.table import Table
from kdplug_tasks.guess import EXAMPLE, recognized

WORDS = [f"a review of {number} words" for number in range(60)]


def table(**columns: Any) -> Table:
    return Table("data.csv", "--from", columns)


def config(folder: Path, **keys: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keys))
    return str(folder)


@pytest.mark.parametrize(
    ("columns", "task", "names"),
    [
        ({"text": WORDS, "label": ["a", "b"] * 30}, "text-classification", {"text": "text", "label": "label"}),
        ({"id": [*range(60)], "review": WORDS, "Stars": ["1", "5"] * 30}, "text-classification", {"text": "review", "label": "Stars"}),
        ({"review": WORDS, "mood": ["a", "b", "c"] * 20, "id": [*range(60)]}, "text-classification", {"text": "review", "label": "mood"}),
        ({"text": WORDS, "label": ["not spam", "spam or phishing"] * 30}, "text-classification", {"text": "text", "label": "label"}),
        ({"text": WORDS, "topic": WORDS}, "causal-lm", {"text": "text"}),
        ({"premise": WORDS, "hypothesis": WORDS, "label": ["0", "1"] * 30}, "text-pair-classification", {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        ({"text": WORDS, "score": [f"{n / 7}" for n in range(60)]}, "regression", {"text": "text", "label": "score"}),
        ({"text": WORDS, "score": [*range(60)]}, "regression", {"text": "text", "label": "score"}),
        ({"text": WORDS, "labels": [["a"], ["a", "b"]] * 30}, "multi-label", {"text": "text", "label": "labels"}),
        ({"tokens": [["a"]] * 3, "ner_tags": [["O"]] * 3}, "token-classification", {"tokens": "tokens", "tags": "ner_tags"}),
        ({"question": WORDS, "context": WORDS, "answers": WORDS}, "question-answering", {}),
        ({"prompt": WORDS, "completion": WORDS}, "causal-lm", {}),
        ({"story": WORDS}, "causal-lm", {"text": "story"}),
        ({"image": ["a.png"] * 3, "label": ["a"] * 3}, "image-classification", {}),
    ],
)  # fmt: skip
def test_columns_decide_the_task(columns: dict[str, Any], task: str, names: dict[str, str]) -> None:
    found = recognized(table(**columns))
    assert found is not None
    assert (found.task, dict(found.columns)) == (task, names)
    assert found.reasons


@pytest.mark.parametrize("columns", [{"x": [1.0, 2.0], "y": [0, 1]}, {"name": ["a", "b"]}])
def test_a_table_of_no_task_is_not_recognized(columns: dict[str, Any]) -> None:
    assert recognized(table(**columns)) is None


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``kdplug new`` in a folder with a CSV of reviews: its result and the task block that it wrote."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{text},{'up' if place % 2 else 'down'}\n" for place, text in enumerate(WORDS))
    (tmp_path / "train.csv").write_text(f"review,mood\n{rows}")

    def run(*arguments: str) -> tuple[Any, Any]:
        done = CliRunner().invoke(app, ["new", "new.yaml", *arguments])
        file = tmp_path / "new.yaml"
        return done, read_document(file).data["task"] if file.exists() else None

    return run


def test_a_recipe_from_data_and_a_teacher_needs_no_filling_in(new: Any, tmp_path: Path) -> None:
    config(
        tmp_path / "bert",
        **{**BERT, "num_hidden_layers": 4, "max_position_embeddings": 64},
        architectures=["BertForSequenceClassification"],
    )
    done, task = new("--from", "train.csv", "--teacher", "bert")
    columns = {"text": "review", "label": "mood"}
    assert task["data"] == {"train": "train.csv", "validation": 0.1, "test": 0.2, "columns": columns}
    assert task["teacher"] == {"path": "bert"}
    assert task["student"] == {"from_teacher": {"layers": [0, 2]}}
    assert task["max_length"] == 64
    assert "column 'mood' holds 2 labels: down, up" in done.stdout
    assert "Fill in" not in done.stdout


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_delimiter_of_a_spreadsheet_is_recognized(new: Any, tmp_path: Path, mark: str) -> None:
    file = tmp_path / "train.csv"
    file.write_text(file.read_text().replace(",", mark))
    done, task = new("--from", "train.csv")
    assert task["data"]["delimiter"] == mark
    assert task["data"]["columns"] == {"text": "review", "label": "mood"}
    assert f"columns are separated by {mark!r}" in done.stdout


def test_a_teacher_without_a_head_for_the_task_is_trained_first(new: Any, tmp_path: Path) -> None:
    config(tmp_path / "bert", **BERT, architectures=["BertForMaskedLM"])
    done, task = new("--from", "train.csv", "--teacher", "bert")
    assert task["teacher"] == {"path": "bert", "train": True}
    assert "BertForMaskedLM has no head trained for text-classification" in done.stdout


def test_the_test_file_next_to_the_training_file_is_used(new: Any, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text((tmp_path / "train.csv").read_text())
    _, task = new("--from", ".")
    assert (task["data"]["train"], task["data"]["test"]) == ("train.csv", "test.csv")
    assert task["data"]["validation"] == 0.1


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_the_validation_file_next_to_the_others_is_used(new: Any, tmp_path: Path, name: str) -> None:
    for part in ("test", name):
        (tmp_path / f"{part}.csv").write_text((tmp_path / "train.csv").read_text())
    done, task = new("--from", ".")
    assert (task["data"]["validation"], task["data"]["test"]) == (f"{name}.csv", "test.csv")
    assert f"data.validation: {name}.csv, which is next to train.csv" in done.stdout


def test_validation_data_without_test_data_are_tested_on(new: Any, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text((tmp_path / "train.csv").read_text())
    done, task = new("--from", ".")
    assert (task["data"]["validation"], task["data"]["test"]) == (0.1, "dev.csv")
    assert "data.validation: 10% of the rows, since there is no validation file next to train.csv" in done.stdout


def test_without_a_teacher_the_models_are_examples_to_fill_in(new: Any, tmp_path: Path) -> None:
    done, task = new("--from", "train.csv")
    assert task["teacher"] == EXAMPLE["teacher"]
    assert "Fill in task.teacher\nFill in task.student\n" in done.stdout
    assert "teacher: {path: path/to/teacher}  # fill in" in (tmp_path / "new.yaml").read_text()


def test_a_hub_name_is_not_read(new: Any) -> None:
    done, task = new("--from", "train.csv", "--teacher", "google/bert")
    assert task["teacher"] == {"path": "google/bert"}
    assert "google/bert is not a local folder, so neither its head nor its layers were read" in done.stdout
    assert "Fill in task.student\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass --task NAME, or --from DATA"),
        (("--task", "digits", "--teacher", "bert"), "--teacher has no effect without --from"),
        (("--task", "digits", "--from", "train.csv"), "--from: kdplug-tasks:digits cannot infer its settings from 'train.csv'"),
        (("--from", "train.cvs"), "--from: there is no file 'train.cvs'. Did you mean 'train.csv'?"),
        (("--from", "numbers.csv"), "--from: no installed task recognizes 'numbers.csv'. Name a task with --task"),
    ],
)  # fmt: skip
def test_data_that_fit_no_task_are_one_message_and_no_file(
    new: Any, tmp_path: Path, arguments: Any, message: str
) -> None:
    (tmp_path / "numbers.csv").write_text("x,y\n1,2\n3,4\n")
    done, task = new(*arguments)
    assert (done.exit_code, task) == (2, None)
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", sorted(entry.name for entry in kdplug.tasks.entries() if entry.name != "digits"))
def test_a_new_recipe_shows_what_to_fill_in(new: Any, name: str) -> None:
    done, task = new("--task", name)
    assert set(EXAMPLE) <= set(task)
    assert "Fill in task.data\nFill in task.teacher\nFill in task.student\n" in done.stdout
