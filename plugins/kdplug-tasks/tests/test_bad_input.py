"""Errors in a recipe, its data and its models are raised before anything is trained or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_scene import BERT, TRAINED, recipe, reviews, save_model, tokenizer, write_csv

from kdplug import ConfigError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_csv(folder / "train.csv", reviews(16))
    write_csv(folder / "odd.csv", [*reviews(4), {"text": "x", "label": "poss"}])
    write_csv(folder / "range.csv", [{"text": "x", "label": 0}, {"text": "y", "label": 5}])
    write_csv(folder / "three.csv", [{"text": "x", "label": place % 3} for place in range(12)])
    write_csv(folder / "four.csv", [{"text": "x", "label": "abcd"[place % 4]} for place in range(16)])
    write_csv(folder / "six.csv", [{"text": "x", "label": "abcdef"[place % 6]} for place in range(6)])
    (folder / "latin.csv").write_bytes(b"text,label\ncaf\xe9,pos\n")
    (folder / "empty.csv").touch()
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    auto, brings = "AutoModelForSequenceClassification", tokenizer()
    save_model(folder / "teacher", auto, BERT, brings=brings, vocab_size=len(brings), pad_token_id=0, **names)
    other = tokenizer(["something else entirely", "zebra"])
    save_model(folder / "other", auto, BERT, brings=other, vocab_size=len(brings), pad_token_id=0, **names)
    save_model(folder / "encoder", "AutoModel", BERT, brings=brings, vocab_size=len(brings), pad_token_id=0)
    return folder


CASES = {
    "missing column": ({"data": {"columns": {"text": "sentence"}}}, r"task\.data\.train: .* no column 'sentence'"),
    "unknown label": (
        {"data": {"test": "odd.csv"}},
        r"task\.data\.test: row 5 of .*unknown label 'poss'. Did you mean 'pos'",
    ),
    "label out of range": (
        {"data": {"train": "range.csv", "validation": "range.csv", "test": 0.5}},
        r"task\.data\.train: row 2 .*label id 5 is out of range",
    ),
    "names and numbers": (
        {"data": {"test": "range.csv"}},
        r"task\.data\.test: row 2 .*the label .5. is a number, but row 1 of",
    ),
    "empty file": ({"data": {"distillation": "empty.csv"}}, r"task\.data\.distillation: .*it has no rows"),
    "not UTF-8": ({"data": {"test": "latin.csv"}}, r"task\.data\.test: .*line 2 contains the byte 0xe9"),
    "no file": ({"data": {"train": "tarin.csv"}}, r"task\.data\.train: there is no file .*Did you mean 'train.csv'"),
    "no dataset": (
        {"data": {"train": None, "dataset": "nothing/here"}},
        r"task\.data\.dataset: 'nothing/here' is not a local folder, and it is not in the local cache of the hub",
    ),
    "another vocabulary": (
        {"student": "other"},
        r"task\.student\.path: the student's tokenizer has a different vocabulary",
    ),
    "another vocabulary than the teacher's": (
        {"tokenizer": "other"},
        r"task\.tokenizer: has a different vocabulary from the tokenizer that the teacher in .* was trained with",
    ),
    "too long": ({"max_length": 64}, r"task\.max_length: is 64, but the teacher takes sequences of at most 40 tokens"),
    "student too short": (
        {"student": {"config": {"max_position_embeddings": 16}}},
        r"task\.max_length: is 24, but the student takes sequences of at most 16",
    ),
    "too few embeddings": (
        {"student": {"config": {"vocab_size": 100}}},
        r"task\.student: the model has 100 embeddings \(vocab_size\), but the tokenizer has \d+ tokens",
    ),
    "no teacher": ({"teacher": "./taecher"}, r"task\.teacher\.path: there is no folder './taecher'"),
    "unknown key of a model": (
        {"student": {"config": {"num_hidden_layer": 1}}},
        r"task\.student\.config\.num_hidden_layer: BertConfig has no such key. Did you mean 'num_hidden_layers'",
    ),
    "unknown kind of model": (
        {"student": {"config": {"model_type": "brt"}}},
        r"task\.student\.config\.model_type: transformers has no model_type 'brt'",
    ),
    "sizes that do not go together": (
        {"student": {"config": {"hidden_size": 15}}},
        r"task\.student: .* cannot be built from this BertConfig: ValueError: The hidden size \(15\) is not a multiple",
    ),
    "no tokenizer": ({"teacher": {"config": BERT, **TRAINED}}, r"task\.tokenizer: is required"),
    "fewer outputs of the student than labels": (
        {"student": {"config": {"num_hidden_layers": 1, "num_labels": 3}}},
        r"task\.student\.config\.num_labels: is 3, but the task needs 2",
    ),
    "fewer outputs of a new teacher than labels": (
        {
            "data": {"train": "four.csv", "test": "four.csv"},
            "teacher": {"config": {**BERT, "num_labels": 3}, **TRAINED},
            "tokenizer": "bytes",
        },
        r"task\.teacher\.config\.num_labels: is 3, but the task needs 4",
    ),
    "labels that only the test part has": (
        {
            "data": {"train": "four.csv", "test": "six.csv"},
            "teacher": {"config": BERT, **TRAINED},
            "tokenizer": "bytes",
        },
        r"task\.data\.test: row 5 of .*unknown label 'e'.* The labels are a, b, c, d\. .* of data\.train\. .* The same applies to 'f'",
    ),
    "more labels than a teacher without a head": (
        {"data": {"train": "three.csv", "test": "three.csv"}, "teacher": "encoder"},
        r"label id 2 is out of range.* no trained head: its config\.json names BertModel\. Write .*train: true",
    ),
    "names of labels with a teacher without a head": (
        {"teacher": "encoder"},
        r"the label 'neg' is a name.* no trained head: its config\.json names BertModel\. Write .*train: true",
    ),
    "more labels than the teacher has outputs": (
        {"data": {"train": "three.csv", "test": "three.csv"}},
        r"label id 2 is out of range.* If the teacher has no trained head for these labels, write .*train: true",
    ),
    "names for more labels than a teacher without a head": (
        {"labels": ["neg", "pos", "odd"], "teacher": "encoder"},
        r"task\.labels: has 3 names, but the teacher has 2 outputs\. The teacher has no trained head",
    ),
    "label names that do not fit": (
        {"labels": ["a", "b", "c"]},
        r"task\.labels: has 3 names, but the teacher has 2 outputs",
    ),
}


def _in(folder, value, key=""):
    if isinstance(value, dict):
        return {name: _in(folder, one, name) for name, one in value.items()}
    is_file = isinstance(value, str) and (value.endswith(".csv") or value in ("other", "encoder"))
    return str(folder / value) if is_file else value


def _task(folder, changes):
    data = {"train": "train.csv", "test": "train.csv", **changes.get("data", {})}
    settings = {"student": {"config": {"num_hidden_layers": 1}}, "max_length": 24, **changes, "data": data}
    settings.setdefault("teacher", str(folder / "teacher"))
    return {"name": "text-classification", **_in(folder, settings)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("carry_out", [run_recipe, plan_recipe])
def test_bad_input_is_an_error_before_anything_is_trained(folder, tmp_path, case, carry_out):
    changes, message = CASES[case]
    with pytest.raises(ConfigError, match=message):
        carry_out(recipe(_task(folder, changes), tmp_path / "out"))
    assert not Path(tmp_path / "out").exists()


def test_a_teacher_without_a_trained_head_is_refused_and_one_that_is_fitted_first_is_not(folder, tmp_path):
    from task_scene import task_of

    settings = _task(folder, {"teacher": str(folder / "encoder"), "labels": ["neg", "pos"]})
    with pytest.raises(ConfigError, match=r"has no weights for .*classifier.*, so its outputs would be random"):
        task_of(**settings).build_teacher()
    task_of(**{**settings, "teacher": {"path": str(folder / "encoder"), "train": True}}).build_teacher()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"pth": "x"}}, r"teacher\.pth: there is no such key. Did you mean 'path'"),
        ({"teacher": {"path": "x", "lr": -1, "train": True}}, r"teacher\.lr: must be > 0, got -1"),
        ({"teacher": {"path": "x", "epochs": 2}}, "epochs has no effect without train: true"),
        ({"teacher": {"config": BERT}}, "a teacher from scratch is untrained"),
        ({"student": {"from_teacher": {"layer": [0]}}}, r"student\.from_teacher\.layer: .* Did you mean 'layers'"),
        ({"tokenizer": {"train": "bytes-bpe"}}, "vocab, the number of tokens, is required with train: bytes-bpe"),
        ({"data": {"tset": 0.1}}, r"data\.tset: there is no such key. Did you mean 'test'"),
        ({"data": {"train": None}}, "train is required"),
        ({"max_lenght": 3}, "has no setting 'max_lenght'. Did you mean 'max_length'"),
    ],
)
def test_unknown_or_conflicting_settings(folder, changes, message):
    from task_scene import task_of

    with pytest.raises(ConfigError, match=message):
        task_of(**_task(folder, changes))


def test_a_tokenizer_whose_ids_have_gaps_needs_as_many_embeddings_as_its_highest():
    from types import SimpleNamespace

    from kdplug_tasks.text.tokenizer import check_vocabulary

    gap = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 7})
    check_vocabulary(gap, 8, "student")
    with pytest.raises(
        ConfigError, match=r"^student: the model has 7 embeddings \(vocab_size\), but the tokenizer has 8 tokens"
    ):
        check_vocabulary(gap, 7, "student")
