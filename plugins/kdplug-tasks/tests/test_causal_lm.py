"""Causal language models: alignment of logits and labels, and masks."""

from __future__ import annotations

import math

import pytest
import torch
from task_scene import GPT2, TEXTS, TRAINED, first_batch, recipe, save_model, task_of, tokenizer, write_csv
from torch.nn import functional

from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

PAIRS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text file, a file of prompts, and a teacher."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 12), encoding="utf-8")
    write_csv(folder / "pairs.csv", PAIRS)
    brings = tokenizer(is_framed=False)
    save_model(folder / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, **_ids(brings))
    return folder


def _ids(brings):
    return {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")} | {
        "vocab_size": len(brings)
    }


def _settings(folder, **changes):
    data = {"train": str(folder / "text.txt"), "test": 0.2}
    teacher, student = str(folder / "teacher"), {"from_teacher": {"layers": [0, 2]}}
    return {"name": "causal-lm", "data": data, "teacher": teacher, "student": student, "max_length": 16, **changes}


def _prompted(folder, **changes):
    return _settings(folder, data={"train": str(folder / "pairs.csv"), "test": 0.3}, prompts=True, **changes)


def test_a_text_file_alone_is_enough(folder, tmp_path):
    task = _settings(folder, tokenizer="bytes", teacher={"config": GPT2, **TRAINED})
    done = run_recipe(recipe(task, tmp_path, "training.num_epochs=2"))
    assert (done.metric, done.is_lower_better, done.unit) == ("perplexity", True, "tokens")
    assert done.distilled.metrics["perplexity"] < 260
    figures = done.distilled.figures
    assert figures.units_per_second > 1 / figures.seconds_per_example

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, brings = (one.from_pretrained(tmp_path / "model") for one in (AutoModelForCausalLM, AutoTokenizer))
    ids = model.generate(**brings("a good", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert len(ids[0]) > len(brings("a good")["input_ids"])


def test_the_loss_is_the_one_that_transformers_computes(folder):
    task = task_of(**_settings(folder))
    batch, model = first_batch(task), task.build_teacher().eval()
    outputs = model(**batch, labels=batch.targets["labels"])
    torch.testing.assert_close(task.teacher_adaptor(batch, outputs)["losses"].value, outputs.loss)


def test_logits_are_aligned_with_the_tokens_they_predict(folder):
    task = task_of(**_settings(folder))
    batch, model = first_batch(task), task.build_teacher().eval()
    found = task.teacher_adaptor(batch, model(**batch))
    assert torch.equal(found["labels"], batch["input_ids"][:, 1:])
    shorter = model(input_ids=batch["input_ids"][:, :5]).logits[:, -1]
    torch.testing.assert_close(found["logits"][:, 4], shorter, atol=1e-5, rtol=1e-5)


def test_only_the_tokens_of_completions_count(folder):
    task = task_of(**_prompted(folder))
    examples, brings = task.data("distillation").examples, task.problem.processor.tokenizer
    batch = task.collate(list(examples.items))
    found = task.teacher_adaptor(batch, task.build_teacher()(**batch))
    counted = [brings.decode(row[kept]) for row, kept in zip(found["labels"], found["logits_mask"], strict=True)]
    assert sorted(counted) == sorted(f"{brings.decode(one.ids).split(': ')[1]}" for one in examples.items)
    assert all(text.endswith("</s>") for text in counted)


def test_content_of_padding_and_prompts_changes_no_loss(folder):
    task = task_of(**_prompted(folder))
    batch, model = first_batch(task), task.build_teacher().eval()
    found = task.teacher_adaptor(batch, model(**batch))
    spoilt = found["logits"].masked_fill(~found["logits_mask"].unsqueeze(-1), 1e4)
    torch.testing.assert_close(
        functional.cross_entropy(spoilt.flatten(0, 1), found["labels"].flatten()), found["losses"].value
    )


@pytest.mark.parametrize("packing", [True, False])
def test_packing_loses_no_token(folder, packing):
    task = task_of(**_settings(folder, packing=packing, documents="blank_line"))
    ids = [one.ids for part in ("distillation", "validation", "test") for one in task.data(part).examples.items]
    whole = sum(len(task.problem.processor.tokenizer(text)["input_ids"]) + 1 for text in TEXTS * 12)
    assert sum(map(len, ids)) >= whole - 3
    assert max(map(len, ids)) <= 16
    assert (len(ids) < len(TEXTS * 12)) is packing


def test_perplexity_is_over_tokens_and_not_over_batches(folder):
    task = task_of(**_settings(folder, packing=False))
    model, data = task.build_teacher().eval(), task.data("test").examples.items
    with torch.no_grad():
        one = task.evaluate(model, [task.collate(data)])
        many = task.evaluate(model, [task.collate([item]) for item in data])
    assert one["perplexity"] == pytest.approx(many["perplexity"], rel=1e-5)
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))


def test_models_of_one_vocabulary_and_more_embeddings_are_read_up_to_the_tokenizer(folder):
    task = task_of(**_settings(folder, student={"config": {"vocab_size": 320, "n_layer": 1}}))
    task.check()
    batch = first_batch(task)
    found = task.student_adaptor(batch, task.build_student()(**batch))["logits"]
    assert found.shape == task.teacher_adaptor(batch, task.build_teacher()(**batch))["logits"].shape
    assert "only the outputs of the tokenizer's" in task.about()


def test_a_plan_warns_of_no_unshifted_labels(folder, tmp_path):
    plan = plan_recipe(recipe(_settings(folder), tmp_path, probability_shift=True))
    assert {warning.check for warning in plan.warnings}.isdisjoint({"unshifted_labels", "padding_counts", "dead_term"})


def test_a_model_that_sees_the_next_token_is_refused(folder):
    from task_scene import BERT

    with pytest.raises(ValueError, match="a bert model attends to the tokens that it predicts"):
        task_of(**_settings(folder, student={"config": BERT})).check()


def test_a_new_recipe_has_temperature_1(tmp_path):
    from typer.testing import CliRunner

    from kdplug.cli.app import app

    done = CliRunner().invoke(app, ["new", str(tmp_path / "lm.yaml"), "--task", "causal-lm"])
    assert done.exit_code == 0, done.output
    assert "\n  temperature: 1.0\n" in (tmp_path / "lm.yaml").read_text()
