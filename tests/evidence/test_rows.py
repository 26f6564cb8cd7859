"""Files of rows: what is read, what is refused and where."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from kdplug.errors import ConfigError
from kdplug.evidence import rows as module
from kdplug.evidence.rows import read_rows, write_rows


def file(tmp_path, *lines):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_rows_return_as_they_were_written(tmp_path):
    rows = [{"arm": "distilled", "seed": 1, "id": 7, "score": 0.5, "label": ["a", "ü"], "probability": [0.5, 1.0]}]
    write_rows(tmp_path / "p.jsonl", rows)
    assert read_rows(tmp_path / "p.jsonl") == rows


def test_numbers_of_numpy_and_torch_are_written_as_numbers_and_nan_as_null(tmp_path):
    torch = pytest.importorskip("torch")
    rows = [{"id": np.int64(3), "score": torch.tensor(math.nan), "label": np.array([1, 2]), "probability": math.inf}]
    write_rows(tmp_path / "p.jsonl", rows)
    written = json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8"))
    assert written == {"id": 3, "score": None, "label": [1, 2], "probability": None}
    assert math.isnan(read_rows(tmp_path / "p.jsonl")[0]["score"])


def test_a_text_that_is_no_valid_unicode_is_written_and_read(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"id": 0, "score": 1.0, "input": "a\udc80b"}])
    assert read_rows(tmp_path / "p.jsonl")[0]["input"] == "a\udc80b"


def test_what_is_no_plain_data_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match="row 1 cannot be written: a value of type object has no form in JSON"):
        write_rows(tmp_path / "p.jsonl", [{"score": 1}, {"score": object()}])


def test_id_is_by_default_the_position_in_the_seed_of_the_arm(tmp_path):
    lines = [json.dumps({"arm": arm, "seed": seed, "score": 1}) for arm in "ab" for seed in (0, 1) for _ in range(2)]
    assert [(row["seed"], row["id"]) for row in read_rows(file(tmp_path, *lines), "b")] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    assert len(read_rows(file(tmp_path, b'\xef\xbb\xbf{"score": 1}', "", '{"score": NaN}', ""))) == 2


def test_other_keys_are_kept_and_misspelt_ones_refused(tmp_path):
    assert read_rows(file(tmp_path, '{"score": 1, "language": "de"}'))[0]["language"] == "de"
    with pytest.raises(ConfigError, match=r"line 1: unknown key 'wieght'\. Did you mean 'weight'\?"):
        read_rows(file(tmp_path, '{"score": 1, "wieght": 2}'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not a JSON object: Expecting property name enclosed in double quotes at character 2"),
        ("[1]", "line 2: a row must be a mapping, got list"),
        ("__import__('os')", "line 2: is not a JSON object"),
        (b'{"score": "\xff"}', "line 2: is not UTF-8 text"),
        ('{"score": "1"}', "line 2, score: must be a number, got the string '1'"),
        ('{"score": [1]}', "line 2, score: must be a number, got [1]"),
        ('{"score": 1, "weight": null}', "line 2, weight: must be a number, got None"),
        ('{"score": 1, "weight": NaN}', "line 2, weight: must be a finite number of at least 0, got nan"),
        ('{"score": 1, "seed": "0"}', "line 2, seed: must be a whole number, got '0'"),
        ('{"score": 1, "seed": true}', "line 2, seed: must be a whole number, got True"),
        ('{"score": 1, "unit": 0.5}', "line 2, unit: must be a whole number or a string, got 0.5"),
        ('{"score": 1, "arm": 3}', "line 2, arm: must be a string, got 3"),
        ('{"score": 1, "id": 1' + "0" * 200 + "}", "line 2: holds a number of 201 characters; the maximum is 100"),
        ('{"label": ' + "[" * 5000 + "]" * 5000 + "}", "line 2: is nested too deeply"),
        ('{"score": 1e999, "seed": 1e3}', "line 2, seed: must be a whole number, got 1000.0"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = file(tmp_path, '{"score": 1}', line)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert f"{path}, {message}" in str(caught.value)


def test_a_line_and_a_file_have_a_maximum(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 3)
    assert len(read_rows(file(tmp_path, *['{"score": 1}'] * 3))) == 3
    with pytest.raises(ConfigError, match="contains more than 3 lines, the maximum"):
        read_rows(file(tmp_path, *['{"score": 1}'] * 4))
    with pytest.raises(ConfigError, match="line 1: the line is longer than 4,194,304 bytes, the maximum"):
        read_rows(file(tmp_path, '{"input": "' + "x" * (1 << 22) + '"}'))


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"q.jsonl: cannot be read: No such file"):
        read_rows(tmp_path / "q.jsonl")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_rows(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_rows(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="contains no rows"):
        read_rows(file(tmp_path, ""))


def test_one_of_several_arms_must_be_selected(tmp_path):
    path = file(tmp_path, '{"arm": "teacher", "score": 1}', '{"arm": "distilled", "score": 0}')
    assert [row["score"] for row in read_rows(path, "distilled")] == [0]
    with pytest.raises(ConfigError, match=r"contains several arms: 'teacher', 'distilled'. Compare one of them"):
        read_rows(path)
    with pytest.raises(ConfigError, match=r"no row of the arm 'techer': its arms are .* Did you mean 'teacher'\?"):
        read_rows(path, "techer")
    with pytest.raises(ConfigError, match="no row of the arm 'distilled': its rows have no key 'arm'"):
        read_rows(file(tmp_path, '{"score": 1}'), "distilled")


def test_a_key_that_is_written_twice_is_refused(tmp_path):
    path = file(tmp_path, '{"id": 0, "score": 1.0}', '{"id": 1, "score": 1.0, "score": 0.0}')
    with pytest.raises(ConfigError, match=r"p.jsonl, line 2: has the key 'score' twice"):
        read_rows(path)


def test_a_tensor_without_dimensions_is_no_list_of_rows():
    torch = pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=r"a: must be .* or a list of rows, got Tensor"):
        module.checked_rows(torch.tensor(1.0), "a")
