"""Text pairs, regression and multi-label."""

from __future__ import annotations

import json
import math

import pytest
import torch
from task_scene import BERT, TEXTS, TOKENIZER, TRAINED, first_batch, recipe, save_model, task_of, tokenizer, write_csv
from torch.nn import functional

from kdplug_tasks.data.label import Labels
from kdplug_tasks.targets.score import Score, pearson, spearman
from kdplug_tasks.targets.tag_set import TagSet

SCRATCH = {"teacher": {"config": BERT, **TRAINED}, "student": {"from_teacher": {"layers": [1]}}, "tokenizer": TOKENIZER}
PAIRS = [
    {"text": one, "text_pair": other, "label": "same" if one == other else "other"}
    for one in TEXTS
    for other in (one, TEXTS[0])
][1:]


def _run(task, folder, **distillation):
    from kdplug.recipes.run import run_recipe

    return run_recipe(recipe({**SCRATCH, **task}, folder, **distillation))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("pairs") / "pairs.csv", PAIRS)


def _pair_task(pairs, **changes):
    return {"name": "text-pair-classification", "data": {"train": pairs, "test": 0.2}, "max_length": 32, **changes}


def test_pairs_are_classified(pairs, tmp_path):
    done = _run(_pair_task(pairs), tmp_path)
    assert set(done.distilled.metrics) == {"accuracy", "macro_f1"}


def test_a_pair_is_both_texts_and_the_longer_is_cut(pairs):
    task = task_of(**SCRATCH, **_pair_task(pairs, max_length=8))
    examples, brings = task.data("distillation").examples, task.problem.processor.tokenizer
    ids, _ = examples[0]
    assert len(ids["input_ids"]) == 8
    assert brings.decode(ids["input_ids"]).count("</s>") == 2


def test_a_student_without_token_types_learns_from_a_teacher_with_them(pairs, tmp_path):
    from transformers import PreTrainedTokenizerFast

    made = tokenizer()
    brings = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    names = {"id2label": {0: "other", 1: "same"}, "label2id": {"other": 0, "same": 1}, "vocab_size": len(brings)}
    teacher = save_model(tmp_path / "t", "AutoModelForSequenceClassification", BERT, brings=brings, **names)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": len(brings)}
    student = {"config": {"model_type": "distilbert", **sizes}}
    task = task_of(**_pair_task(pairs, teacher=teacher, student=student))
    task.check()
    batch = first_batch(task)
    assert batch["token_type_ids"].max() == 1
    assert task.build_student()(**batch).logits.shape == task.build_teacher()(**batch).logits.shape


def test_a_number_is_learned_and_measured(tmp_path):
    data = write_csv(tmp_path / "scores.csv", [{"text": text, "label": len(text) / 10} for text in TEXTS * 4])
    task = {"name": "regression", "data": {"train": data, "test": 0.25}, "max_length": 32}
    done = _run(task, tmp_path, kd_loss_type="mse")
    assert set(done.distilled.metrics) == {"pearson", "spearman", "rmse"}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["problem_type"] == "regression"


def test_the_correlations_are_those_of_torchmetrics():
    from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

    one, other = torch.randn(2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pearson(one, other) == pytest.approx(float(pearson_corrcoef(one, other)))
    assert spearman(one, other) == pytest.approx(float(spearman_corrcoef(one, other)))


def test_a_side_that_does_not_vary_correlates_with_nothing():
    assert pearson(torch.ones(4), torch.arange(4.0)) == spearman(torch.arange(4.0), torch.ones(4)) == 0


def test_rows_without_a_number_add_nothing_to_the_squared_error():
    logits = torch.tensor([[1.0], [5.0], [2.0]], requires_grad=True)
    loss = Score().adapted(logits, torch.tensor([3.0, math.nan, 2.0]))["losses"]
    loss.total.backward()
    assert (loss.value.item(), logits.grad[1].item()) == (2.0, 0.0)


def test_sets_of_labels_are_learned_and_measured(tmp_path):
    rows = [{"text": text, "labels": ",".join(word for word in ("film", "bad") if word in text)} for text in TEXTS * 4]
    task = {"name": "multi-label", "data": {"train": write_csv(tmp_path / "sets.csv", rows), "test": 0.25}}
    done = _run({**task, "max_length": 32}, tmp_path, kd_loss_type="mse")
    assert set(done.distilled.metrics) == {"micro_f1", "macro_f1", "exact_match"}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "film"}


def test_the_loss_of_a_set_is_the_binary_cross_entropy_over_rows_that_have_one():
    logits, targets = torch.randn(3, 2), torch.tensor([[1, 0], [-100, -100], [0, 0]])
    loss = TagSet(None, ",").adapted(logits, targets)["losses"]
    kept = [0, 2]
    torch.testing.assert_close(
        loss.value, functional.binary_cross_entropy_with_logits(logits[kept], targets[kept].float())
    )


def test_f1_of_sets_is_that_of_torchmetrics():
    from torchmetrics.functional.classification import multilabel_f1_score

    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    targets = (torch.randn(20, 4, generator=torch.Generator().manual_seed(2)) > 0).long()
    sets = TagSet(None, ",")
    sets.labels = Labels(("a", "b", "c", "d"))
    found = sets.predictions(sets.rows(logits, targets)).metrics
    for kind in ("micro", "macro"):
        theirs = multilabel_f1_score(logits.sigmoid(), targets, num_labels=4, average=kind)
        assert found[f"{kind}_f1"] == pytest.approx(float(theirs), abs=1e-6)
