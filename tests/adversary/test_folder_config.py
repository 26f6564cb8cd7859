"""A model folder whose JSON files are valid and wrong: huge counts, switches, NaN, another problem. Each is an error or has no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from task_scene import BERT, GPT2, recipe, reviews, save_model, tokenizer, write_csv

from kdplug import ConfigError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
TEXT = "AutoModelForSequenceClassification"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher and its data."""
    brings = tokenizer()
    save_model(tmp_path / "teacher", TEXT, BERT, brings=brings, vocab_size=len(brings), pad_token_id=0, **NAMES)
    write_csv(tmp_path / "rows.csv", reviews(16))
    return tmp_path


def change(folder: Path, name: str = "config.json", **keys: Any) -> None:
    """Set keys of a JSON file of the teacher; ``None`` for a key removes it."""
    file = folder / "teacher" / name
    data = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """A task on the teacher."""
    data = {"train": str(folder / "rows.csv"), "test": 0.5}
    student = {"config": {"num_hidden_layers": 1}}
    return {"name": "text-classification", "teacher": str(folder / "teacher"), "student": student, "data": data,
            "max_length": 24, **more}  # fmt: skip


HUGE = {
    "layers": ({"num_hidden_layers": 10**9}, "has num_hidden_layers 1000000000: kdplug builds models of at most 4,096"),
    "labels": ({"id2label": None, "num_labels": 10**12}, "has num_labels 1000000000000: kdplug builds models of at most"),
    "vocabulary": ({"vocab_size": 10**9}, r"describes a model of 16,000,\d+,\d+ parameters, but its safetensors files have only"),
    "width": ({"hidden_size": 10**8, "num_attention_heads": 1}, "describes a model of"),
    "layers of a part": ({"part": {"encoder_layers": 10**8}}, "has encoder_layers 100000000: "),
    "depths": ({"depths": [1, 10**9]}, "has depths 1000000000: "),
    "NaN": ({"hidden_dropout_prob": float("nan")}, "has hidden_dropout_prob nan: it must be a number, not NaN"),
    "dropout": ({"attention_probs_dropout_prob": 1.5}, r"has attention_probs_dropout_prob 1\.5: a dropout must be in"),
    "chunks": ({"chunk_size_feed_forward": 7}, "has chunk_size_feed_forward 7: the chunk size would have to divide the length of every batch"),
}  # fmt: skip


@pytest.mark.attack("a config.json with numbers that no model can have")
@pytest.mark.parametrize("case", HUGE)
def test_numbers_of_a_folder_that_no_model_can_have_are_an_error_at_once(folder: Path, case: str) -> None:
    keys, message = HUGE[case]
    change(folder, **keys)
    with pytest.raises(ConfigError, match=message):
        plan_recipe(recipe(settings(folder), folder / "out"))


@pytest.mark.attack("a recipe with numbers that no model can have")
def test_numbers_of_a_recipe_that_no_model_can_have_are_an_error_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task\.student\.config: it has num_hidden_layers 1000000000: "):
        plan_recipe(recipe(settings(folder, student={"config": {"num_hidden_layers": 10**9}}), folder / "out"))


@pytest.mark.attack("a folder that switches off what kdplug reads")
def test_a_folder_that_returns_tuples_gives_the_same_plan(folder: Path) -> None:
    def values() -> list[float | None]:
        made = plan_recipe(recipe(settings(folder), folder / "out"))
        return [term.value for term in made.terms]

    before = values()
    change(folder, return_dict=False, torchscript=True)
    change(folder, "tokenizer_config.json", model_input_names=["odd"])
    assert values() == before
    run_recipe(recipe(settings(folder, student=str(folder / "teacher")), folder / "out"))


@pytest.mark.attack("a folder that switches off what kdplug reads")
@pytest.mark.parametrize("names", [3, [1]])
def test_a_folder_whose_input_names_are_no_list_of_names_is_an_error(folder: Path, names: Any) -> None:
    change(folder, "tokenizer_config.json", model_input_names=names)
    with pytest.raises(ConfigError, match=r"must be a list of names, got|cannot load the tokenizer of"):
        plan_recipe(recipe(settings(folder), folder / "out"))


@pytest.mark.attack("a teacher that was trained for another problem")
@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("text-classification", "regression"),
        ("text-classification", "multi_label_classification"),
        ("multi-label", "single_label_classification"),
        ("regression", "multi_label_classification"),
    ],
)
def test_a_teacher_of_another_problem_is_an_error(folder: Path, task: str, problem: str) -> None:
    change(folder, problem_type=problem)
    data = {"train": str(folder / "rows.csv"), "test": 0.5}
    if task == "multi-label":
        data["columns"] = {"labels": "label"}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=rf"^task\.teacher\.path: was trained for '{problem}'"):
        plan_recipe(recipe(settings(folder, name=task, data=data), folder / "out"))


@pytest.mark.attack("a teacher that was trained for another problem")
def test_a_saved_student_says_which_problem_it_was_trained_for(folder: Path) -> None:
    change(folder, problem_type="regression")
    teacher = {"path": str(folder / "teacher"), "train": True, "epochs": 1}
    run_recipe(recipe(settings(folder, teacher=teacher), folder / "out"))
    saved = json.loads((folder / "out" / "model" / "config.json").read_text())
    assert saved["problem_type"] == "single_label_classification"


@pytest.mark.attack("a teacher that was trained for another problem")
def test_a_teacher_of_texts_is_no_teacher_of_tokens_unless_it_is_trained(folder: Path) -> None:
    rows = [{"tokens": "a good film", "tags": "pos neg pos"}, {"tokens": "bad plot", "tags": "neg pos"}] * 4
    data = {"train": write_csv(folder / "tags.csv", rows), "test": 0.5}
    kind = {"name": "token-classification", "data": data}
    message = (
        r"^task\.teacher\.path: was trained as BertForSequenceClassification .*the task uses AutoModelForTokenClass"
    )
    with pytest.raises(ConfigError, match=message):
        plan_recipe(recipe(settings(folder, **kind), folder / "out"))
    trained = {"path": str(folder / "teacher"), "train": True, "epochs": 1}
    plan_recipe(recipe(settings(folder, **kind, teacher=trained), folder / "out"))


@pytest.mark.attack("a config in the recipe that contradicts the data")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_labels": 3}, r"task\.student\.config\.num_labels: is 3, but the task needs 2"),
        ({"num_labels": 1}, r"task\.student\.config\.num_labels: is 1, but the task needs 2"),
        ({"id2label": {"0": "pos", "1": "neg"}}, r"task\.student\.config\.id2label: is {0: 'pos'"),
        ({"problem_type": "regression"}, r"task\.student\.config\.problem_type: is regression"),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"model_type": "bert"}])
def test_a_student_config_that_contradicts_the_data_is_an_error(
    folder: Path, config: dict[str, Any], message: str, kind: dict[str, Any]
) -> None:
    base = {**BERT, **config} if kind else {"num_hidden_layers": 1, **config}
    with pytest.raises(ConfigError, match=message):
        plan_recipe(recipe(settings(folder, student={"config": base}), folder / "out"))


@pytest.mark.attack("a config that lacks what a task reads")
def test_a_model_of_texts_is_no_teacher_for_pictures(folder: Path) -> None:
    numpy.savez(folder / "rows.npz", image=numpy.full((8, 8, 8), 9, numpy.uint8), label=numpy.arange(8) % 2)
    task = {
        "name": "image-classification",
        "data": {"train": str(folder / "rows.npz"), "test": 0.5},
        "teacher": {"config": GPT2, "train": True},
        "student": {"config": GPT2},
    }
    with pytest.raises(ConfigError, match=r"^task\.teacher: the GPT2Config has no num_channels"):
        plan_recipe(recipe(task, folder / "out"))


@pytest.mark.attack("a config that lacks what a task reads")
def test_a_composite_config_without_pad_token_id_is_given_one_where_text_is_read(folder: Path) -> None:
    import transformers

    from kdplug_tasks.text.processor import TextProcessor

    config = transformers.Gemma3Config()
    assert not hasattr(config, "pad_token_id")
    config.text_config.pad_token_id = None
    made = tokenizer()
    TextProcessor(made, 8).check_model(config, "teacher")
    assert config.text_config.pad_token_id == made.pad_token_id
    with pytest.raises(ConfigError, match=r"^teacher: the CLIPVisionConfig has no vocab_size"):
        TextProcessor(made, 8).check_model(transformers.CLIPVisionConfig(), "teacher")


@pytest.mark.attack("a config that lacks what a task reads")
def test_layers_cannot_be_taken_from_a_model_that_does_not_count_them(folder: Path) -> None:
    from types import SimpleNamespace

    from kdplug_tasks.models.setting import FromTeacher
    from kdplug_tasks.models.start import check_layers

    with pytest.raises(ConfigError, match=r"^layers: the teacher's SimpleNamespace has no num_hidden_layers"):
        check_layers(FromTeacher(layers=[0]), SimpleNamespace(), SimpleNamespace(num_hidden_layers=1))


@pytest.mark.attack("class names in which teacher, student and data differ")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["POS", "Neg"],
            r"^task\.labels: is not in the order of the teacher's outputs: neg, pos\. labels\[0\] is 'POS', which is output 1",
        ),
        (["pos ", " neg"], r"^task\.labels: is not in the order"),
        (["pos", "negative"], r"^task\.labels: is not in the order"),
    ],
)
def test_labels_in_another_order_than_the_teachers_are_an_error_however_they_are_written(
    folder: Path, labels: list[str], message: str
) -> None:
    write_csv(folder / "rows.csv", [{**row, "label": labels[row["label"] == "neg"].strip()} for row in reviews(16)])
    with pytest.raises(ConfigError, match=message):
        plan_recipe(recipe(settings(folder, labels=labels), folder / "out"))


@pytest.mark.attack("class names in which teacher, student and data differ")
def test_labels_in_the_teachers_order_may_be_written_otherwise(folder: Path) -> None:
    write_csv(folder / "rows.csv", [{**row, "label": row["label"].upper()} for row in reviews(16)])
    assert "2 classes: NEG, POS." in plan_recipe(recipe(settings(folder, labels=["NEG", "POS"]), folder / "out")).about


@pytest.mark.attack("class names in which teacher, student and data differ")
def test_a_teacher_whose_two_maps_of_labels_disagree_is_an_error(folder: Path) -> None:
    change(folder, label2id={"neg": 1, "pos": 0})
    with pytest.raises(
        ConfigError,
        match=r"teacher\.path: id2label and label2id in the teacher's config\.json disagree: 'neg' is output 0",
    ):
        plan_recipe(recipe(settings(folder), folder / "out"))


@pytest.mark.attack("class names in which teacher, student and data differ")
def test_a_teacher_from_scratch_with_other_labels_than_the_data_is_an_error(folder: Path) -> None:
    teacher = {"config": {**BERT, "num_labels": 3}, "train": True}
    with pytest.raises(ConfigError, match=r"^task\.teacher\.config\.num_labels: is 3, but the task needs 2"):
        plan_recipe(recipe(settings(folder, teacher=teacher, tokenizer=str(folder / "teacher")), folder / "out"))


@pytest.mark.attack("class names in which teacher, student and data differ")
@pytest.mark.parametrize("names", [("pos", "neg"), ("a", "b", "c")])
def test_a_student_folder_of_another_order_or_number_of_classes_gets_the_teachers(
    folder: Path, names: tuple[str, ...]
) -> None:
    ids = dict(enumerate(names))
    brings = tokenizer()
    save_model(folder / "student", TEXT, BERT, brings=brings, vocab_size=len(brings), pad_token_id=0,
               id2label=ids, label2id={name: place for place, name in ids.items()})  # fmt: skip
    run_recipe(recipe(settings(folder, student=str(folder / "student")), folder / "out"))
    saved = json.loads((folder / "out" / "model" / "config.json").read_text())
    assert saved["id2label"] == {"0": "neg", "1": "pos"}
