"""Mistakes in a recipe, its data and its model folders: one line that names the field, the value and the fix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from error_scene import EXIT_CODES, ErrorScene, refusal
from small_run import make_student

from kdplug import ConfigError, DistillationConfig, KdplugError, Recipe, RunError, losses, tasks
from kdplug.engine.checkpoint.weights import load_student

COMMANDS = pytest.mark.parametrize("command", EXIT_CODES)
DEEP = 100_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> ErrorScene:
    return ErrorScene(tmp_path_factory.mktemp("mistakes"))


HIDDEN = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"}

VALUES: dict[str, tuple[str, Any, str]] = {
    "loss": (
        "distillation.kd_loss_type",
        "cee",
        r"distillation\.kd_loss_type: no loss named 'cee'\. Did you mean 'ce' .*To list all: kdplug plugins list --kind loss",
    ),
    "loss that is like no other": (
        "distillation.kd_loss_type",
        "qqqzzz",
        r"distillation\.kd_loss_type: no loss named 'qqqzzz'\. To list all: kdplug plugins list --kind loss",
    ),
    "loss of a match": (
        "distillation.intermediate_matches",
        [{**HIDDEN, "loss": "hiden_mse"}],
        r"distillation\.intermediate_matches\.0\.loss: no loss named 'hiden_mse'\. Did you mean 'hidden_mse' .*To list all",
    ),
    "task": (
        "task.name",
        "text-clasification",
        r"task: no task .*Did you mean 'text-classification' .*To list all: kdplug plugins list --kind task",
    ),
    "scheduler": (
        "distillation.temperature_scheduler",
        "flws",
        r"temperature_scheduler: no temperature scheduler named 'flws'\. Did you mean 'flsw' .*To list all",
    ),
    "device that is not there": (
        "training.device",
        "cuda:99",
        r"training\.device: there is no device 'cuda:99': .* Use device: auto",
    ),
    "device of another name": ("training.device", "gpu", r"training\.device: must be auto, cpu, .* got 'gpu'"),
    "width": (
        "distillation.intermediate_matches",
        [HIDDEN],
        r"distillation\.intermediate_matches\.0\.loss: .*8 wide, the teacher's 16: add proj: linear to the match",
    ),
    "width of a projection": (
        "distillation.intermediate_matches",
        [{**HIDDEN, "proj": ["linear", 16, 8]}],
        r"intermediate_matches\.0\.proj: the student feature is 8 wide .* \(the student's width comes first\)",
    ),
    "temperature": ("distillation.temperature", 1e308, r"distillation\.temperature: must be <= 1e\+15, got 1e\+308"),
    "temperature as text": ("distillation.temperature", "1e308", r"must be a number, got '1e308'"),
    "weight of the kd loss": ("distillation.kd_loss_weight", 1e308, r"kd_loss_weight: must be <= 1e\+15, got 1e\+308"),
    "weight of the labels": ("distillation.hard_label_weight", 1e308, r"hard_label_weight: must be <= 1e\+15"),
    "weight of a match": (
        "distillation.intermediate_matches",
        [{**HIDDEN, "weight": 1e308}],
        r"intermediate_matches\.0\.weight: must be <= 1e\+15",
    ),
    "superscript in a number": ("training.batch_size", "²", r"training\.batch_size: must be a whole number, got '²'"),
    "whole number": ("training.num_epochs", 1e308, r"training\.num_epochs: must be a whole number, got 1e\+308"),
    "half of a surrogate pair": ("training.teacher_cache", "a\udc80", r"training\.teacher_cache: must be a valid string"),
}  # fmt: skip


@pytest.mark.attack("a value in a recipe that no run can have")
@COMMANDS
@pytest.mark.parametrize("case", VALUES)
def test_a_wrong_value_is_one_line(scene: ErrorScene, command: str, case: str) -> None:
    path, value, says = VALUES[case]
    assert re.search(says, scene.refused(command, **{path: value}))


@pytest.mark.attack("a value in a recipe that no run can have")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
@COMMANDS
def test_a_missing_accelerator_is_named_with_its_cause(scene: ErrorScene, command: str) -> None:
    says = r"training\.device: there is no device 'cuda': torch .* Use device: auto, or cpu"
    assert re.search(says, scene.refused(command, **{"training.device": "cuda"}))


@pytest.mark.attack("a value in a recipe that no run can have")
@pytest.mark.parametrize("weight", ["kd_loss_weight", "hard_label_weight"])
def test_python_gets_the_same_errors(weight: str) -> None:
    with pytest.raises(KdplugError, match=r"^no loss named 'hiden_mse'\. Did you mean 'hidden_mse'.*To list all"):
        losses["hiden_mse"]
    with pytest.raises(KdplugError, match=r"no task named 'digit'\. Did you mean 'digits'.*To list all"):
        tasks.build("digit")
    with pytest.raises(ConfigError, match=rf"{weight}: must be <= 1e\+15, got 1e\+308"):
        DistillationConfig(**{weight: 1e308})
    with pytest.raises(ConfigError, match=r"temperature: must be <= 1e\+15, got 1e\+308"):
        DistillationConfig(temperature=1e308)


def rows(first: str, *others: str) -> str:
    return "".join(f"{line}\n" for line in (first, *others))


DATA: dict[str, tuple[str, bytes | str, str]] = {
    "semicolons": ("a.csv", rows("text;label", "good;pos", "bad;neg"), r'contains ";"\. .* set data\.delimiter: ";"'),
    "semicolons and commas": (
        "a.csv",
        rows("label;text", "pos;a good, nice film", "neg;bad"),
        r'set data\.delimiter: ";"',
    ),
    "tabs": ("a.csv", rows("text\tlabel", "good\tpos", "bad\tneg"), r'set data\.delimiter: "\\t"'),
    "superscript as a label": (
        "a.csv",
        rows("text,label", "good,0", "bad,²"),
        r"row 2 of .* unknown label '²'",
    ),
    "circled number as a label": ("a.csv", rows("text,label", "good,①", "bad,0"), r"row 1 of .* unknown label '①'"),
    "list of lists": ("a.jsonl", "[" * DEEP + "]" * DEEP, "line 1 is nested too deeply"),
    "text that is nested": ("a.jsonl", '{"text": ' * DEEP + "1" + "}" * DEEP, "line 1 is nested too deeply"),
    "label that is nested": (
        "a.jsonl",
        '{"text": "a", "label": ' + "[" * DEEP + "]" * DEEP + "}",
        "line 1 is nested too deeply",
    ),
    "number of many digits": ("a.jsonl", '{"text": "a", "label": ' + "9" * DEEP + "}", "line 1 is not valid JSON"),
    "line that is cut": ("a.jsonl", '{"text": "a", "lab', "line 1 is not valid JSON"),
    "Parquet that is cut": ("a.parquet", b"PAR1abc", "it cannot be read as Parquet"),
    "archive that is cut": ("a.npz", b"PK\3\4" + bytes(50), "it cannot be read as an NPZ file"),
    "cell that is long": (
        "a.csv",
        rows("text,label", "a" * 200_000 + ",pos"),
        "line 2 cannot be parsed: field larger than field limit",
    ),
    "quote without its end": ("a.csv", 'text,label\n"a,pos\n', "unexpected end of data"),
    "UTF-16": ("a.csv", "text,label\na,pos\n".encode("utf-16"), "it is not UTF-8: line 1 contains the byte 0xff"),
}


@pytest.mark.attack("a data file that is damaged or in another form")
@COMMANDS
@pytest.mark.parametrize("case", DATA)
def test_a_damaged_data_file_is_one_line(scene: ErrorScene, command: str, case: str) -> None:
    name, content, says = DATA[case]
    line = scene.refused(command, **{"task.data.train": scene.file(name, content)})
    assert line.startswith("task.data.train: ")
    assert re.search(says, line)


NESTED = b"[" * DEEP + b"]" * DEEP
OBJECTS = b'{"a":' * DEEP + b"1" + b"}" * DEEP
UNREAD = r"task\.teacher\.path: transformers cannot load "

MODELS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no weights": ({"model_safetensors": None}, UNREAD + ".*no file named model.safetensors"),
    "empty weights": ({"model_safetensors": b""}, UNREAD + ".*header too small"),
    "weights of 4 bytes": ({"model_safetensors": b"\1\2\3\4"}, UNREAD + ".*header too small"),
    "weights with an enormous header": ({"model_safetensors": b"\xff" * 16}, UNREAD + ".*header too large"),
    "weights with a nested header": (
        {"model_safetensors": len(NESTED).to_bytes(8, "little") + NESTED},
        UNREAD + ".*invalid JSON in header",
    ),
    "a broken pickle": (
        {"model_safetensors": None, "pytorch_model_bin": b"\x80\x04broken"},
        r"task\.teacher\.path: .* weights in pytorch_model.bin, a pickle\. .*reads only safetensors",
    ),
    "config that is nested": ({"config_json": OBJECTS}, UNREAD),
    "config that is a nested list": ({"config_json": NESTED}, UNREAD),
    "config that is cut": ({"config_json": b'{"model_'}, UNREAD + ".*not a valid JSON file"),
    "config that is a list": ({"config_json": b"[]"}, UNREAD),
    "config that is null": ({"config_json": b"null"}, UNREAD),
    "config with a superscript": (
        {"config_json": '{"model_type": "bert", "num_hidden_layers": "²"}'.encode()},
        UNREAD + r".*Validation error for field 'num_hidden_layers': .*got str \(value: '²'\)",
    ),
    "tokenizer that is nested": ({"tokenizer_json": NESTED}, UNREAD.replace("load ", "load the tokenizer of ")),
    "tokenizer that is cut": ({"tokenizer_json": b'{"version": "1'}, UNREAD.replace("load ", "load the tokenizer of ")),
    "settings of a tokenizer that are nested": (
        {"tokenizer_config_json": NESTED},
        UNREAD.replace("load ", "load the tokenizer of "),
    ),
}


@pytest.mark.attack("a model folder that is damaged")
@COMMANDS
@pytest.mark.parametrize("case", MODELS)
def test_a_damaged_model_folder_is_one_line(scene: ErrorScene, command: str, case: str) -> None:
    files, says = MODELS[case]
    assert re.search(says, scene.refused(command, **{"task.teacher": str(scene.model("damaged", **files))}))


@pytest.mark.attack("a model folder that is damaged")
@COMMANDS
def test_weights_that_are_cut_are_one_line(scene: ErrorScene, command: str) -> None:
    weights = (scene.teacher / "model.safetensors").read_bytes()
    folder = scene.model("damaged", model_safetensors=weights[: len(weights) // 2])
    line = scene.refused(command, **{"task.teacher": str(folder)})
    assert re.search(UNREAD + ".*file not fully covered", line)


@pytest.mark.attack("a model folder that is damaged")
@pytest.mark.parametrize("content", [b"", b"\1\2\3\4", b"\x80\x04broken", NESTED])
@pytest.mark.parametrize("name", ["student.safetensors", "student.pkl"])
def test_python_raises_a_run_error_for_a_student_that_is_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        load_student(make_student(), tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


RECIPES: dict[str, tuple[str, bytes, str]] = {
    "nested JSON": ("a.json", b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "JSON of nested objects": ("a.json", OBJECTS, "more than 524,288 bytes"),
    "nested YAML": ("a.yaml", b"[" * DEEP + b"]" * DEEP, "nested too deeply: more than 64 levels"),
    "YAML that is cut": ("a.yaml", b"task: [digits", "expected ',' or ']'"),
    "YAML with NUL": ("a.yaml", b"task: a\0b", "cannot be read as YAML"),
    "YAML that is not UTF-8": ("a.yaml", b"task: caf\xe9", "is not UTF-8 text"),
    "empty YAML": ("a.yaml", b"", "is empty"),
    "infinite number": ("a.json", b'{"seed": Infinity}', "every number in a config must be finite"),
}


@pytest.mark.attack("a recipe that is damaged")
@COMMANDS
@pytest.mark.parametrize("case", RECIPES)
def test_a_damaged_recipe_is_one_line(tmp_path: Path, command: str, case: str) -> None:
    name, content, says = RECIPES[case]
    (tmp_path / name).write_bytes(content)
    assert says in refusal(command, str(tmp_path / name))
    with pytest.raises(ConfigError, match=re.escape(says)):
        Recipe.from_file(tmp_path / name)
