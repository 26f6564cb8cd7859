from __future__ import annotations

import re

import pytest

from kdplug.config.distillation import DistillationConfig
from kdplug.config.text import json_document, read_document, write_json, write_yaml, yaml_document, yaml_value
from kdplug.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1e8", 1e8), (".5", 0.5), ("yes", "yes"), ("0o17", 15), ("010", 10), ("~", None), ("'1'", "1")],
)
def test_yaml_is_read_as_version_1_2(text, value):
    found = yaml_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_repeated_yaml_key_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r'^YAML, line 3, column 1: found duplicate key "a"'):
        yaml_document("a: 1\nb: 2\na: 3\n")


def test_a_repeated_json_key_is_an_error():
    with pytest.raises(ConfigError, match=r"^JSON: the key 'a' appears twice, with 1 and 2$"):
        json_document('{"b": {"a": 1, "a": 2}}')


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_json_holds_finite_numbers_only(word):
    with pytest.raises(ConfigError, match=f"^JSON: {word} is not JSON"):
        json_document(f'{{"a": {word}}}')


def test_broken_json_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r"^JSON, line 2, column 6: "):
        json_document('{"a": 1,\n"b": }')


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\tx",
        "a: 1\n b: 2",
        "a: *b",
        "!!python/name:os.system a",
        "? [1]\n: 2\n? {a: 1}\n: 3",
        "\x00",
        "a: 2020-99-99",
        "--- a\n--- b",
    ],
)
def test_broken_yaml_is_our_error(text):
    with pytest.raises(ConfigError, match=r"^YAML"):
        yaml_document(text)


@pytest.mark.parametrize("deep", [yaml_document, json_document])
def test_text_that_is_nested_too_deeply_is_our_error(deep):
    with pytest.raises(ConfigError):
        deep("[" * 20_000 + "]" * 20_000)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null"])
def test_an_empty_document_is_an_error(text):
    with pytest.raises(ConfigError, match=r"^YAML is empty. A config is a mapping of keys to values$"):
        yaml_document(text)


def test_a_list_is_no_config():
    with pytest.raises(ConfigError, match=r"^JSON must contain a mapping of keys to values, got \[1\]$"):
        json_document("[1]")


@pytest.mark.parametrize(("write", "read"), [(write_yaml, yaml_document), (write_json, json_document)])
def test_keys_keep_their_order_and_words_their_type(write, read):
    data = {"z": "1e-3", "a": {"y": "none", "b": "yes"}, "m": ["null", "~", "1", "", "é\u2028\t\x07"], "f": 1e-8}
    found = read(write(data)).data
    assert found == data
    assert list(found) == list(data)


@pytest.mark.parametrize(
    "text",
    ["?0", "?>", "\x85", "- a", "a: b", "a #b", "kdplug-presets:flsw", "./runs", ".5", "off", "ü", " a ", "x" * 300],
)
def test_any_text_survives_yaml(text):
    data = {text: [text, {text: text}]}
    assert yaml_document(write_yaml(data)).data == data


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ".YAML"])
def test_a_file_is_read_by_its_suffix(tmp_path, suffix):
    path = tmp_path / f"config{suffix}"
    path.write_text('{"temperature": 8}', encoding="utf-8-sig")
    assert DistillationConfig.from_file(path).temperature == 8


def test_a_json_file_is_read_whatever_its_name(tmp_path):
    path = tmp_path / "config.txt"
    path.write_text('{"temperature": 8}')
    assert DistillationConfig.from_json_file(str(path)).temperature == 8


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    (tmp_path / "digits.yaml").write_text("a: 1")
    expected = r"^there is no file '.*digit\.yaml'\. Did you mean 'digits\.yaml'\?$"
    with pytest.raises(ConfigError, match=expected):
        read_document(tmp_path / "digit.yaml")


def test_a_missing_folder_is_an_error_too(tmp_path):
    with pytest.raises(ConfigError, match=r"^there is no file"):
        read_document(tmp_path / "none" / "digits.yaml")


@pytest.mark.parametrize("name", ["config.toml", "config", "config.pkl"])
def test_another_suffix_is_refused(tmp_path, name):
    says = f"cannot read {str(tmp_path / name)!r}: the name of a config file must end in .yaml, .yml or .json"
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        read_document(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read '.*a.yaml': "):
        read_document(tmp_path / "a.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text: .* at byte 3$"):
        read_document(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "a.yaml",
            "kd_loss_type: ce\nintermediate_matches:\n- layer_T: 1\n  layer_S: 1\n  feature: hidden\n  loss: hiden_mse\n",
            6,
        ),
        (
            "a.json",
            '{"kd_loss_type": "ce",\n "intermediate_matches": [\n {"layer_T": 1, "layer_S": 1, "feature": "hidden",\n "loss": "hiden_mse"}]}',
            4,
        ),
    ],
)
def test_a_wrong_value_in_a_file_is_named_with_its_line(tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match=rf"^intermediate_matches\.0\.loss: no loss named 'hiden_mse'.*   \({name}, line {line}\)$"
    ):
        DistillationConfig.from_file(tmp_path / name)


def test_a_missing_key_is_named_with_the_line_of_what_lacks_it():
    with pytest.raises(ConfigError, match=r"^intermediate_matches\.0\.loss: is required   \(YAML, line 2\)$"):
        DistillationConfig.from_yaml("intermediate_matches:\n- {layer_T: 1, layer_S: 1, feature: hidden}\n")


def test_a_problem_of_the_whole_file_is_named_without_a_line():
    with pytest.raises(ConfigError, match=r"   \(YAML\)$"):
        DistillationConfig.from_yaml("kd_loss_weight: 0")
