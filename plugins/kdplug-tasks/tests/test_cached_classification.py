"""Classification and regression tasks with a teacher cache."""

from __future__ import annotations

import json

import numpy
import pytest
from safetensors.torch import load_file
from task_scene import BERT, TOKENIZER, TRAINED, recipe, reviews, save_model, tokenizer, write_csv

import kdplug
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.model_task import ModelTask

VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
CONTEXT = "The old town lies by the river. Anna Lee built the red bridge."
ANSWERS = [("Who built it?", "Anna Lee"), ("What was built?", "the red bridge"), ("Where?", "by the river")]


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Measure throughput only once and draw no plots."""
    monkeypatch.setattr("kdplug.recipes.measure._ROUNDS", 1)
    monkeypatch.setattr("kdplug.recipes.run.draw_run_curves", lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data for each task, and a trained classifier in a folder."""
    folder, rows = tmp_path_factory.mktemp("cached"), reviews(24)
    write_csv(folder / "text.csv", rows)
    write_csv(folder / "plain.csv", [{"text": row["text"]} for row in rows])
    write_csv(folder / "pair.csv", [{**row, "text_pair": "the plot"} for row in rows])
    write_csv(folder / "score.csv", [{"text": row["text"], "label": len(row["text"]) / 10} for row in rows])
    write_csv(folder / "tags.csv", [{"text": row["text"], "labels": f"{row['label']},all"} for row in rows])
    (folder / "words.conll").write_text("Anna B-PER\nsleeps O\n\nin O\nOslo B-LOC\nit O\nrains O\n\n" * 8)
    labels = numpy.arange(16) % 2
    pixels = numpy.random.default_rng(0).integers(0, 100, (16, 8, 8)) + 150 * labels[:, None, None]
    numpy.savez(folder / "pictures.npz", image=pixels.astype(numpy.uint8), label=labels)
    (folder / "questions.jsonl").write_text("\n".join(map(_question, ANSWERS * 3)))
    brings = tokenizer([row["text"] for row in rows])
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}, "pad_token_id": brings.pad_token_id}
    auto = "AutoModelForSequenceClassification"
    save_model(folder / "teacher", auto, BERT, brings=brings, vocab_size=len(brings), **names)
    return folder


def _question(pair):
    question, answer = pair
    return json.dumps(
        {
            "question": question,
            "context": CONTEXT,
            "answers": {"text": [answer], "answer_start": [CONTEXT.index(answer)]},
        }
    )


SCRATCH = {"teacher": {"config": BERT, **TRAINED}, "tokenizer": TOKENIZER, "max_length": 40}
BYTES = {**SCRATCH, "tokenizer": "bytes"}
LONG = {
    **BYTES,
    "teacher": {"config": {**BERT, "max_position_embeddings": 64}, **TRAINED},
    "max_length": 64,
    "stride": 8,
}
TASKS = {
    "text-classification": ("text.csv", SCRATCH, "kl"),
    "text-pair-classification": ("pair.csv", SCRATCH, "dkd"),
    "regression": ("score.csv", SCRATCH, "regression"),
    "multi-label": ("tags.csv", SCRATCH, "bce"),
    "token-classification": ("words.conll", BYTES, "kl"),
    "question-answering": ("questions.jsonl", LONG, "kl"),
    "image-classification": ("pictures.npz", {"teacher": {"config": VIT, **TRAINED}}, "kl"),
}


def make(folder, out, name, *changes, **more):
    file, settings, loss = TASKS[name]
    data = {"train": str(folder / file), "test": 0.25}
    task = {"name": name, "data": data, "student": {"config": {"num_hidden_layers": 1}}, **settings, **more}
    return recipe(task, out, *changes, kd_loss_type=loss)


def cached(folder, out, name, *changes, codec=None, **more):
    cache = [f"training.teacher_cache={out / 'cache'}", *([f"training.teacher_cache_codec={codec}"] if codec else [])]
    return make(folder, out / "run", name, *cache, *changes, **more)


def without_models(monkeypatch, *sides):
    for side in sides:
        monkeypatch.setattr(ModelTask, f"build_{side}", lambda self: 1 / 0)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("name", TASKS)
def test_a_student_of_a_cache_is_that_of_the_teacher_itself(folder, tmp_path, monkeypatch, name):
    plain = run_recipe(make(folder, tmp_path / "plain", name))
    made = cached(folder, tmp_path, name, codec="{name: dense, dtype: float32}")
    cache_recipe(made, tmp_path / "cache")
    without_models(monkeypatch, "teacher")
    done = run_recipe(made)
    mine, other = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(numpy.allclose(mine[name], other[name], atol=1e-6) for name in mine)
    assert (done.teacher.metrics, done.distilled.metrics) == (plain.teacher.metrics, plain.distilled.metrics)


def test_features_of_a_classifier_come_from_a_cache_too(folder, tmp_path, monkeypatch):
    match = "[{layer_T: -1, layer_S: -1, feature: hidden, loss: hidden_mse}]"
    changes = (f"distillation.intermediate_matches={match}", "training.num_epochs=2")
    run_recipe(make(folder, tmp_path / "plain", "text-classification", *changes))
    made = cached(folder, tmp_path, "text-classification", *changes)
    cache_recipe(made, tmp_path / "cache")
    without_models(monkeypatch, "teacher")
    run_recipe(made)
    mine, other = weights(tmp_path / "plain"), weights(tmp_path / "run")
    assert all(numpy.allclose(mine[name], other[name], atol=1e-5) for name in mine)


@pytest.mark.parametrize("codec", ["{name: dense}", "{name: topk_tail, k: 1, bits: 8}"])
def test_a_few_numbers_for_each_text_are_enough(folder, tmp_path, monkeypatch, codec):
    made = cached(folder, tmp_path, "text-classification", codec=codec)
    cache_recipe(made, tmp_path / "cache")
    without_models(monkeypatch, "teacher")
    run_recipe(made)
    run_recipe(made.with_overrides(["task.student={config: {hidden_size: 8}}"]), overwrite=True)


def test_a_loss_that_needs_more_than_probabilities_is_refused_before_the_teacher_runs(folder, tmp_path):
    made = cached(folder, tmp_path, "regression", codec="{name: topk_tail, k: 1}")
    refused = r"^training\.teacher_cache_codec: kdplug-logits:topk_tail returns SparseLogits\. kdplug-logits:regression does not"
    for start in (lambda: cache_recipe(made, tmp_path / "cache"), lambda: run_recipe(made)):
        with pytest.raises(kdplug.ConfigError, match=refused):
            start()
    assert not (tmp_path / "cache" / "manifest.json").exists()


def _middle(folder, tmp_path):
    rows = (folder / "text.csv").read_text().splitlines()
    label = rows[12].rpartition(",")[2]
    rows[12] = rows[12].replace(label, {"neg": "pos", "pos": "neg"}[label])
    (tmp_path / "other.csv").write_text("\n".join(rows))
    return f"task.data.train={tmp_path / 'other.csv'}"


def _copied(folder, tmp_path):
    (tmp_path / "copy.csv").write_text((folder / "text.csv").read_text())
    return f"task.data.distillation={tmp_path / 'copy.csv'}"


HIDDEN = "[{layer_T: 1, layer_S: 1, feature: hidden, loss: hidden_mse}]"
OF_FITTED = [
    (lambda *_: "task.tokenizer.vocab=290", r"the tokenizer: tokens \d+ -> 290"),
    (lambda *_: "task.teacher.config.num_hidden_layers=2", r"the teacher: config\.num_hidden_layers 3 -> 2"),
    (lambda *_: "task.teacher.lr=0.01", r"how the teacher is trained: learning_rate 0\.002 -> 0\.01"),
    (lambda *_: "seed=7", "how the teacher is trained: seed 0 -> 7"),
    (lambda *_: "task.labels=[pos, neg]", "the classes: 0 'neg' -> 'pos', 1 'pos' -> 'neg'"),
    (_middle, "the teacher's training data: content"),
    (lambda *_: "training.teacher_cache_dtype=bfloat16", "the dtype of stored outputs: None -> 'bfloat16'"),
    (lambda *_: f"distillation.intermediate_matches={HIDDEN}", "lacks hidden, which the objective reads"),
]
OF_LOADED = [
    (lambda *_: "task.data.split_seed=4", "the data that the teacher receives: examples 0 to 15"),
    (lambda *_: "task.max_length=6", "the data that the teacher receives"),
    (_copied, "the number of examples: 16 -> 24"),
]


@pytest.fixture(scope="module")
def fitted(folder, tmp_path_factory):
    """A cache of a teacher that the recipe trains, with unlabelled data for the student."""
    out = tmp_path_factory.mktemp("fitted")
    data = {"train": str(folder / "text.csv"), "test": 0.25, "distillation": str(folder / "plain.csv")}
    made = cached(folder, out, "text-classification", data=data)
    cache_recipe(made, out / "cache")
    return out, made


@pytest.mark.parametrize(("change", "words"), OF_FITTED)
def test_whatever_the_cache_depends_on_is_compared_before_a_model_is_built(
    folder, fitted, tmp_path, monkeypatch, change, words
):
    without_models(monkeypatch, "teacher", "student")
    with pytest.raises(kdplug.RunError, match=f"(?s)the teacher cache .*{words}"):
        run_recipe(fitted[1].with_overrides([change(folder, tmp_path)]))


@pytest.fixture(scope="module")
def loaded(folder, tmp_path_factory):
    """A cache of a teacher in a folder."""
    out = tmp_path_factory.mktemp("loaded")
    trained = {"teacher": str(folder / "teacher"), "tokenizer": None}
    made = cached(folder, out, "text-classification", **trained)
    cache_recipe(made, out / "cache")
    return made


@pytest.mark.parametrize(("change", "words"), OF_LOADED)
def test_other_data_are_found_before_a_model_is_built(folder, loaded, tmp_path, monkeypatch, change, words):
    without_models(monkeypatch, "teacher", "student")
    with pytest.raises(kdplug.RunError, match=f"(?s)was built from different inputs.*{words}"):
        run_recipe(loaded.with_overrides([change(folder, tmp_path)]))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_classifier_that_changed_in_its_folder_is_another_one(folder, loaded, monkeypatch, file):
    path = folder / "teacher" / file
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]) if file.startswith("model") else before + b"\n")
    without_models(monkeypatch, "teacher", "student")
    try:
        with pytest.raises(kdplug.RunError, match=rf"(?s)was built from different inputs.*the teacher: files\.{file}"):
            run_recipe(loaded)
    finally:
        path.write_bytes(before)
