"""Tasks with a teacher cache: training, and rejection of another teacher's cache."""

from __future__ import annotations

import json

import pytest
from task_scene import GPT2, TEXTS, recipe, save_model, tokenizer, write_csv

import kdplug
from kdplug.engine.cache.report import CacheReport
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.model_task import ModelTask

PAIRS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in TEXTS * 4]


@pytest.fixture
def folder(tmp_path):
    """A file of prompts and completions of unequal lengths, and a teacher."""
    write_csv(tmp_path / "pairs.csv", PAIRS)
    brings = tokenizer(is_framed=False)
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(tmp_path / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, **ids, vocab_size=len(brings))
    return tmp_path


def make(folder, *changes, codec="{name: topk_tail, k: 8}", student="{config: {n_layer: 1}}", loss="kl"):
    task = {
        "name": "causal-lm",
        "data": {"train": str(folder / "pairs.csv"), "test": 0.3},
        "prompts": True,
        "teacher": str(folder / "teacher"),
        "student": {"config": {"n_layer": 1}},
        "max_length": 24,
    }
    cache = [f"training.teacher_cache={json.dumps(str(folder / 'cache'))}", f"training.teacher_cache_codec={codec}"]
    changed = [*(cache if codec else []), f"task.student={student}", *changes]
    return recipe(task, folder / "run", *changed, kd_loss_type=loss)


def without_teacher(monkeypatch):
    def build(self):
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(ModelTask, "build_teacher", build)


@pytest.mark.parametrize(
    "codec", ["{name: topk_tail, k: 8}", "{name: topk_tail, k: 8, bits: 8}", "{name: dense, dtype: float32}"]
)
def test_a_language_model_learns_from_a_cache_without_a_teacher(folder, codec, monkeypatch):
    plain = run_recipe(make(folder, codec=None))
    cache_recipe(make(folder, codec=codec), folder / "cache")
    without_teacher(monkeypatch)
    cached = run_recipe(make(folder, codec=codec), overwrite=True)
    assert cached.teacher.metrics == plain.teacher.metrics
    assert cached.no_teacher.metrics == plain.no_teacher.metrics
    assert cached.distilled.metrics["loss"] == pytest.approx(plain.distilled.metrics["loss"], abs=0.02)


def test_prompts_and_padding_cost_nothing(folder):
    cache_recipe(make(folder), folder / "cache")
    report = CacheReport.read(folder / "cache", checks=True)
    task = kdplug.tasks.build(make(folder).task).target
    data = task.data("distillation")
    counted = sum(sum(data[place].counts[1:]) for place in range(len(data)))
    assert report.tally.items == counted < report.tally.positions / 2


def test_another_student_learns_from_the_same_cache(folder, monkeypatch):
    cache_recipe(make(folder), folder / "cache")
    without_teacher(monkeypatch)
    run_recipe(make(folder, student="{config: {n_layer: 2, n_embd: 8}}"))


def test_a_student_that_starts_from_the_teacher_still_does(folder):
    cache_recipe(make(folder, student="{from_teacher: {layers: [0, 2]}}"), folder / "cache")
    done = run_recipe(make(folder, "training.lr=1e-12", student="{from_teacher: {layers: [0, 1, 2]}}"))
    assert done.distilled.metrics["loss"] == pytest.approx(done.teacher.metrics["loss"], abs=1e-5)


def retrain(folder):
    file = folder / "teacher" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def retokenize(folder):
    file = folder / "teacher" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("{", '{"note": 1,', 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [(retrain, r"the teacher: files\.model\.safetensors"), (retokenize, r"the teacher: files\.tokenizer_config\.json")],
    ids=["weights", "tokenizer"],
)
def test_a_teacher_that_changed_in_its_folder_is_an_error_without_loading_it(folder, monkeypatch, change, words):
    cache_recipe(make(folder), folder / "cache")
    change(folder)
    without_teacher(monkeypatch)
    with pytest.raises(kdplug.RunError, match=f"(?s)was built from different inputs.*{words}"):
        run_recipe(make(folder))


def test_what_a_tokenizer_says_of_itself_tells_two_apart(folder):
    makes = [f"task.tokenizer={{train: bytes-bpe, vocab: {vocab}}}" for vocab in (280, 290)]
    teacher = f"task.teacher={{path: {json.dumps(str(folder / 'teacher'))}, train: true}}"
    mine, theirs = (kdplug.tasks.build(make(folder, teacher, one).task).target.fingerprint() for one in makes)
    assert mine["teacher"] == theirs["teacher"]
    assert mine["tokenizer"] != theirs["tokenizer"]
