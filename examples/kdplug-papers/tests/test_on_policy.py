"""DistiLLM-2 and MiniLLM learn from texts that the first-party task ``causal-lm`` lets the student sample."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import kdplug
from kdplug.recipes.run import run_recipe

transformers = pytest.importorskip("transformers")
pytest.importorskip("kdplug_tasks")

ROWS = [(f"{one} plus {two} is", f" {one + two}") for one in range(4) for two in range(4)]
GPT2 = {"model_type": "gpt2", "vocab_size": 280, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


def recipe(folder, term, **generate):
    """Return a recipe of two steps in which the student writes every batch."""
    with (folder / "sums.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "completion"), *ROWS])
    config = transformers.GPT2Config(**{**GPT2, "bos_token_id": None, "eos_token_id": None})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "teacher")
    task = {
        "name": "causal-lm",
        "prompts": True,
        "data": {"train": str(folder / "sums.csv"), "test": 0.25},
        "teacher": str(folder / "teacher"),
        "student": {"config": {"n_layer": 1}},
        "tokenizer": {"train": "bytes-bpe", "vocab": 280},
        "max_length": 32,
        "generate": {"fraction": 1.0, "max_new_tokens": 6, **generate},
    }
    training = {"num_epochs": 1, "batch_size": 6, "lr": 1e-3, "device": "cpu", "ckpt_frequency": 0}
    distillation = {"temperature": 1, "terms": [term], "hard_label_weight": 0}
    parts = {"task": task, "distillation": distillation, "training": training, "output_dir": str(folder / "out")}
    return kdplug.Recipe.from_dict(parts)


@pytest.mark.parametrize("name", ["distillm2", "minillm"])
def test_both_train_on_texts_that_the_student_writes(tmp_path, name):
    extra = {"distillm2": "from_student", "minillm": "sampled"}[name]
    made = recipe(tmp_path, {"loss": name, "extras": [extra]})
    run_recipe(made)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["batches_generated"] == {"generated": 2, "batches": 2}
    value, count, tokens = one_step(made)
    assert value.isfinite()
    assert count == (6 if name == "distillm2" else tokens)


def one_step(made):
    """Return the loss of a generated batch, which must have a gradient, its count, and the number of generated tokens."""
    task = kdplug.tasks.build(made.task).target
    data, student, teacher = task.data("distillation"), task.build_student().eval(), task.build_teacher().eval()
    with torch.no_grad():
        batch = task.prepare_batch(task.collate([data[place] for place in range(6)]), student)
    own, other = task.student_adaptor(batch, student(**batch)), task.teacher_adaptor(batch, teacher(**batch))
    report = kdplug.Objective(made.distillation)(student=own, teacher=other)
    report.total.backward()
    assert any(bool(one.grad.any()) for one in student.parameters() if one.grad is not None)
    (part,) = report.terms[next(iter(report.terms))].parts
    return report.total.detach(), int(part.count), int((own["extras"]["sampled"] >= 0).sum())


def test_minillm_gets_no_samples_of_another_distribution(tmp_path):
    with pytest.raises(kdplug.OutputsError, match="returned no extra 'sampled', only from_student"):
        run_recipe(recipe(tmp_path, {"loss": "minillm", "extras": ["sampled"]}, temperature=0.7))
