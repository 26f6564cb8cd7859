"""Text classification, from a CSV file to a folder that transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
from task_scene import BERT, TOKENIZER, TRAINED, first_batch, recipe, reviews, task_of, tokenizer, write_csv
from typer.testing import CliRunner

import kdplug
from kdplug.cli.app import app
from kdplug_tasks.data.label import NO_LABEL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Review files, and a teacher trained on them."""
    folder = tmp_path_factory.mktemp("reviews")
    write_csv(folder / "train.csv", reviews(64))
    write_csv(folder / "test.csv", reviews(24, seed=1))
    write_csv(folder / "unlabelled.csv", [{"text": row["text"]} for row in reviews(40, seed=2)])
    _save_teacher(folder / "teacher")
    return folder


def _save_teacher(path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    brings = tokenizer([row["text"] for row in reviews(64)])
    sizes = {key: value for key, value in BERT.items() if key != "model_type"}
    names = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    config = AutoConfig.for_model("bert", vocab_size=len(brings), pad_token_id=brings.pad_token_id, **names, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = reviews(64)
    batch = brings([row["text"] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([int(row["label"] == "neg") for row in rows])
    for _ in range(25):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    brings.save_pretrained(path)


def _settings(folder, **changes):
    data = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv")}
    teacher, student = str(folder / "teacher"), {"config": {"num_hidden_layers": 1}}
    return {
        "name": "text-classification",
        "data": data,
        "teacher": teacher,
        "student": student,
        "max_length": 24,
        **changes,
    }


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """The folder of a whole run with the command line, and its output."""
    out = tmp_path_factory.mktemp("run")
    file = out / "recipe.json"
    matches = [{"layer_T": -1, "layer_S": -1, "feature": one, "loss": f"{one}_mse"} for one in ("hidden", "attention")]
    file.write_text(recipe(_settings(folder), out / "out", intermediate_matches=matches).to_json())
    result = CliRunner().invoke(app, ["run", str(file), "--set", "training.num_epochs=3"])
    assert result.exit_code == 0, result.output
    return out / "out", result.output


def test_a_csv_file_a_teacher_folder_and_a_student_config_end_in_a_folder_of_the_reported_accuracy(done, folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out, _ = done
    model = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    brings = AutoTokenizer.from_pretrained(out / "model")
    rows = reviews(24, seed=1)
    with torch.no_grad():
        logits = model(**brings([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    found = [model.config.id2label[place] for place in logits.argmax(dim=-1).tolist()]
    accuracy = sum(one == row["label"] for one, row in zip(found, rows, strict=True)) / len(rows)
    assert json.loads((out / "metrics.json").read_text())["arms"]["distilled"]["metrics"]["accuracy"] == accuracy


def test_the_teacher_keeps_what_it_knows_and_the_order_of_its_classes(done):
    results = json.loads((done[0] / "metrics.json").read_text())
    assert results["arms"]["teacher"]["metrics"]["accuracy"] > 0.9
    assert json.loads((done[0] / "model" / "config.json").read_text())["id2label"] == {"0": "pos", "1": "neg"}


def test_the_saved_model_holds_no_projection_and_no_switch_of_the_run(done):
    from safetensors import safe_open

    with safe_open(done[0] / "model" / "model.safetensors", "pt") as weights:
        assert all(name.startswith(("bert.", "classifier.")) for name in weights.keys())  # noqa: SIM118
    config = json.loads((done[0] / "model" / "config.json").read_text())
    assert not config.get("output_hidden_states")
    assert not config.get("output_attentions")


def test_the_card_names_teacher_recipe_results_and_versions(done, folder):
    text = (done[0] / "model" / "README.md").read_text()
    accuracy = json.loads((done[0] / "metrics.json").read_text())["arms"]["distilled"]["metrics"]["accuracy"]
    words = [str(folder / "teacher"), "kdplug-presets:attention_mse", f"{accuracy:.4f}", f"kdplug {kdplug.__version__}"]
    assert [word for word in words if word not in text] == []
    assert "kdplug-tasks 0.1.0" in text


def test_a_run_says_that_attention_is_eager_and_prints_size_and_throughput(done):
    text = " ".join(done[1].split())
    assert "Attention is computed eagerly in both models, since a match reads it." in text
    assert "size on" in text
    assert "examples/s" in text


def test_models_show_what_the_objective_reads_and_nothing_more(folder):
    task = task_of(**_settings(folder))
    batch, model = first_batch(task), task.build_student().eval()
    assert set(task.student_adaptor(batch, model(**batch))) == {"logits", "labels", "losses", "inputs_mask"}
    task = task_of(**_settings(folder))
    task.expect(frozenset({"attention"}))
    model = task.build_student().eval()
    assert model.config._attn_implementation == "eager"
    assert task.student_adaptor(batch, model(**batch))["attention"][0].shape[:2] == (4, 2)


def test_rows_without_a_label_are_distilled_on_and_add_nothing_to_the_loss(folder):
    data = {**_settings(folder)["data"], "distillation": str(folder / "unlabelled.csv")}
    task = task_of(**_settings(folder, data=data))
    batch, model = first_batch(task), task.build_student()
    found = task.student_adaptor(batch, model(**batch))
    found["losses"].total.backward()
    assert found["labels"].tolist() == [NO_LABEL] * 4
    assert found["losses"] == (0, 0)
    assert (len(task.data("distillation")), len(task.data("baseline"))) == (40, 58)


def test_padding_changes_no_logits(folder):
    task = task_of(**_settings(folder))
    model, data = task.build_teacher().eval(), task.data("test")
    together = model(**task.collate([data[place] for place in range(8)])).logits
    alone = torch.cat([model(**task.collate([data[place]])).logits for place in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_models_from_scratch_get_a_tokenizer_from_the_training_data(folder, tmp_path):
    from kdplug.recipes.run import run_recipe

    settings = _settings(folder, teacher={"config": BERT, **TRAINED}, student={"from_teacher": {"layers": [0, 2]}})
    done = run_recipe(recipe({**settings, "tokenizer": TOKENIZER}, tmp_path))
    assert done.distilled.figures.parameters < done.teacher.figures.parameters
    assert done.distilled.figures.bytes < done.teacher.figures.bytes


def test_a_share_of_the_training_file_is_tested_on_and_not_trained_on(folder):
    data = {"train": str(folder / "train.csv"), "test": 0.25}
    task = task_of(**_settings(folder, data=data))
    assert [len(task.data(part)) for part in ("distillation", "baseline", "validation", "test")] == [42, 42, 6, 16]
    assert task.about().startswith(
        "42 examples for distillation, 42 labelled examples for training without a teacher, 6 "
    )
    held_out = [row for part in ("validation", "test") for row in task.data(part).table.rows]
    assert not {*held_out} & {*task.data("distillation").table.rows}
    again = task_of(**_settings(folder, data=data))
    assert task.data("test").examples.items == again.data("test").examples.items


def test_a_killed_run_resumes_to_the_same_student(folder, tmp_path, monkeypatch):
    from kdplug.recipes.recipe_runner import RecipeRunner
    from kdplug.recipes.run import run_recipe

    settings = _settings(folder, teacher={"path": str(folder / "teacher"), **TRAINED})
    settings["student"] = {"from_teacher": {"layers": [0]}}
    whole = run_recipe(recipe(settings, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(RecipeRunner, "distilled", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe(settings, tmp_path / "killed"))
    resumed = run_recipe(recipe(settings, tmp_path / "killed"), resume=True)
    assert resumed.distilled.metrics == whole.distilled.metrics
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
