"""Reading rows from files and datasets, and errors for unreadable ones."""

from __future__ import annotations

import json

import pytest
from task_scene import write_csv

from kdplug import ConfigError
from kdplug_tasks.data.file import read_file
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.source import Columns, read_source

ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "é", "label": "y"}]
COLUMNS = Columns(("text",), ("label",))


def _write(path, file_format):
    if file_format == "csv":
        write_csv(path, ROWS)
    elif file_format == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif file_format == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(ROWS), path)
    return str(path)


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "json", "parquet"])
def test_a_file_gives_the_rows_that_were_written(tmp_path, file_format):
    table = read_file(_write(tmp_path / f"rows.{file_format}", file_format), None, "data.train")
    assert {name: list(column) for name, column in table.columns.items()} == {
        name: [row[name] for row in ROWS] for name in ("text", "label")
    }


def test_a_tsv_file_may_hold_bare_quotes_and_have_no_header(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text('he said "no\t0\n"yes\t1\n')
    table = read_file(str(file), None, "data.train", ["text", "label"])
    assert list(table.columns["text"]) == ['he said "no', '"yes']


def test_blank_lines_divide_the_documents_of_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    assert read_file(str(tmp_path / "a.txt"), None, "f").columns == {"text": ["one\ntwo", "three"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "it has no rows"),
        ("header.csv", b"text,label\n", "it has no rows"),
        ("latin.csv", b"text,label\nfine,x\ncaf\xe9,y\n", "it is not UTF-8: line 3 contains the byte 0xe9"),
        ("ragged.csv", b"text,label\na,b,c\n", "line 2 must have one cell for each column \\(text, label\\), got 3"),
        ("twice.csv", b"text,text\na,b\n", "several columns have the same name: 'text'"),
        ("bad.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not valid JSON"),
        ("list.jsonl", b"3\n", "line 1 must be an object, got 3"),
        ("deep.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "line 1 is nested too deeply"),
        ("bad.parquet", b"PAR0", "it cannot be read as Parquet"),
        ("bad.npz", b"PK", "it cannot be read as an NPZ file"),
        ("tagless.conll", b"Anna\n", "line 1 has the word 'Anna' but no tag"),
        ("rows.dat", b"x", "cannot infer the format of .* from its extension"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^data\.train: .*{message}"):
        read_file(str(tmp_path / name), None, "data.train")


def test_a_file_that_is_not_there_gets_the_nearest_one(tmp_path):
    _write(tmp_path / "train.csv", "csv")
    with pytest.raises(ConfigError, match=r"there is no file '.*trian\.csv'\. Did you mean 'train\.csv'\?"):
        read_file(str(tmp_path / "trian.csv"), None, "data.train")


def _source(tmp_path, **changes):
    train = write_csv(tmp_path / "train.csv", [{"text": f"t{n}", "label": n % 2} for n in range(20)])
    return read_source(DataSettings(**{"train": train, "test": 0.2, **changes}), COLUMNS)


def test_a_split_keeps_every_row_once_and_is_that_of_its_seed(tmp_path):
    one, other, again = (_source(tmp_path, split_seed=seed) for seed in (0, 1, 0))
    rows = [row for table in (one.train, one.validation, one.test) for row in table.columns["text"]]
    assert sorted(rows) == sorted(f"t{n}" for n in range(20))
    assert list(one.test.columns["text"]) == list(again.test.columns["text"]) != list(other.test.columns["text"])
    assert (len(one.train), len(one.validation), len(one.test)) == (14, 2, 4)
    assert one.distillation is one.train


def _texts(table):
    return list(table.columns["text"])


def test_rows_for_validation_are_the_same_whatever_is_tested_on_and_the_other_way_round(tmp_path):
    more = write_csv(tmp_path / "more.csv", [{"text": "x", "label": 1}])
    one, other, apart = (_source(tmp_path, validation=0.25, test=test) for test in (0.2, 0.4, more))
    assert _texts(one.validation) == _texts(other.validation) == _texts(apart.validation)
    assert _texts(one.test) == _texts(_source(tmp_path, validation=more, test=0.2).test)
    assert not {*_texts(one.validation)} & {*_texts(one.train), *_texts(one.test)}
    assert (len(apart.train), len(apart.validation)) == (15, 5)


def test_data_to_distil_on_that_are_the_training_file_lack_the_rows_that_are_held_out(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "train.csv")
    for file in ("train.csv", "link.csv"):
        source = _source(tmp_path, distillation=str(tmp_path / file))
        assert source.distillation is source.train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": 0.5, "test": 0.4},
            r"the number of rows, 2, is too small to hold out a fraction of 0\.5 for validation and a fraction of 0\.4 for test",
        ),
        (
            {"validation": 0.8, "test": "more.csv"},
            r"to hold out a fraction of 0\.8 for validation\. Add rows, or set data\.validation to other data",
        ),
        ({"validation": 0.5, "test": 0.5}, r"validation \(0\.5\) and test \(0\.5\) leave no data for training"),
        ({"validation": 1.0, "test": 0.5}, "validation"),
        ({"validation": "no.csv", "test": 0.5}, r"data\.validation: there is no file"),
    ],
)
def test_shares_that_leave_nothing_are_errors(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    files = {name: write_csv(tmp_path / f"{name}.csv", rows) for name in ("train", "more")}
    with pytest.raises(ValueError, match=message):
        read_source(DataSettings(train=files["train"], **changes), COLUMNS)


def test_errors_name_the_row_in_the_file_even_after_a_split(tmp_path):
    source = _source(tmp_path)
    for row, text in enumerate(source.test.columns["text"]):
        assert f"row {int(text[1:]) + 1} of " in str(source.test.error("it is wrong", row))


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        (
            "a.csv",
            'text,label\na,0\n"b\nb",1\n\nc,0\n',
            ["row 1 of {} (line 2)", "row 2 of {} (line 3)", "row 3 of {} (line 6)"],
        ),
        ("a.tsv", "text\tlabel\r\na\t0\r\n", ["row 1 of {} (line 2)"]),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', ["row 1 of {}", "row 2 of {} (line 3)"]),
        ("b.jsonl", '[\n{"text": "a"},\n{"text": "b"}]', ["row 1 of {}", "row 2 of {}"]),
    ],
)
def test_a_row_is_named_with_its_line_in_an_editor(tmp_path, name, content, places):
    file = tmp_path / name
    file.write_text(content, newline="")
    table = read_file(str(file), None, "data.train")
    assert [table.place(row) for row in range(len(table))] == [place.format(file) for place in places]
    last = table.take([len(table) - 1])
    assert last.place(0) == places[-1].format(file)


def test_columns_of_other_names_are_mapped(tmp_path):
    train = write_csv(tmp_path / "named.csv", [{"sentence": "a", "gold": 1}, {"sentence": "b", "gold": 0}] * 2)
    source = _source(tmp_path, train=train, columns={"text": "sentence", "label": "gold"})
    assert set(source.train.columns) == {"text", "label"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "texts"}, "there is no column 'texts'. Did you mean 'text'"),
        ({"txet": "text"}, "the task has no column 'txet'. Did you mean 'text'"),
    ],
)
def test_a_missing_column_gets_the_nearest_one(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        _source(tmp_path, columns=columns)


def test_rows_to_distil_on_need_no_label(tmp_path):
    more = write_csv(tmp_path / "more.csv", [{"text": "x"}])
    assert set(_source(tmp_path, distillation=more).distillation.columns) == {"text"}
    with pytest.raises(ConfigError, match=r"data\.test: .* there is no column 'label'"):
        _source(tmp_path, test=more)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset of two splits with named classes, as ``save_to_disk`` writes it."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 1, -1]}, features=features)
    folder = tmp_path_factory.mktemp("datasets") / "saved"
    DatasetDict({"train": rows.select(range(3)), "unlabelled": rows.select([3])}).save_to_disk(folder)
    return folder


def test_a_saved_dataset_gives_its_splits_and_the_names_of_its_classes(saved):
    settings = DataSettings(dataset=str(saved), validation="train", test="train", distillation="unlabelled")
    source = read_source(settings, COLUMNS)
    assert list(source.train.columns["label"]) == [0, 1, 1]
    assert source.train.classes == {"label": ("no", "yes")}
    assert list(source.distillation.columns["text"]) == ["d"]


def test_local_files_are_read_through_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    settings = DataSettings(dataset=str(tmp_path / "data"), train="train", test="train[:1]")
    assert list(read_source(settings, COLUMNS).test.columns["text"]) == ["a"]


def test_a_split_that_is_not_there_gets_the_nearest_one(saved):
    with pytest.raises(ConfigError, match=r"data\.test: .* has no split 'tran'\. Did you mean 'train'\?"):
        read_source(DataSettings(dataset=str(saved), test="tran"), COLUMNS)


def test_a_dataset_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset: '.*nothing' is not a local folder"):
        read_source(DataSettings(dataset=str(tmp_path / "nothing"), test=0.5), COLUMNS)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_csv_with_another_separator_is_read_with_delimiter_and_named_without(tmp_path, mark):
    path = write_csv(tmp_path / "rows.csv", [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}], mark)
    with pytest.raises(ConfigError, match=r"data\.train: .*rows\.csv: its first line is .* set data\.delimiter: "):
        read_file(path, None, "data.train")
    assert read_file(path, None, "data.train", delimiter=mark).columns["text"] == ["a, b", "c"]


def test_a_delimiter_has_an_effect_on_csv_only(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"^data\.delimiter: has no effect on .*, which is read as jsonl\. Remove data\.delimiter"
    ):
        read_file(str(tmp_path / "rows.jsonl"), None, "data.train", delimiter=";")


@pytest.mark.parametrize("part", ["distillation", "validation"])
def test_a_path_that_cannot_be_resolved_is_an_error_of_its_part(tmp_path, part):
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    for path in (str(tmp_path / "loop.csv"), "a\0b.csv"):
        with pytest.raises(ConfigError, match=rf"^data\.{part}: "):
            _source(tmp_path, **{part: path})
