"""Evaluation, metrics and the best model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bert_run import batch, examples, make_student, make_trainer, unlabelled, weights
from safetensors.torch import load_file


def accuracy(found):
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def test_evaluation_gives_the_objectives_loss_its_terms_and_the_users_metrics(tmp_path):
    student = make_student()
    trainer = make_trainer(tmp_path, student, kd={"compute_metrics": accuracy, "eval_dataset": examples(8, seed=5)})
    metrics = trainer.evaluate()
    logits = student(**trainer.data_collator(examples(8, seed=5))).logits
    expected = (logits.argmax(-1) == torch.stack([row["labels"] for row in examples(8, seed=5)])).double().mean()
    assert metrics["eval_accuracy"] == expected.item()
    parts = [metrics[f"eval_{name}"] for name in ("kd_loss", "hidden_hidden_mse_-1_-1", "hard_label_loss")]
    assert metrics["eval_loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.5 * parts[2])


def test_the_students_own_loss_is_a_mean_over_all_labels_of_the_evaluation(tmp_path):
    rows = unlabelled(examples(10, seed=5), 0, 1)  # batches of 2, 2 and no labels
    rows[2] = {**rows[2], "labels": rows[0]["labels"]}  # and now of 1
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=4, kd={"eval_dataset": rows})
    held = trainer.data_collator(rows)
    expected = torch.nn.functional.cross_entropy(trainer.model(**held).logits, held["labels"])
    assert trainer.evaluate()["eval_hard_label_loss"] == pytest.approx(expected.item())


def test_predictions_hold_no_feature_that_only_the_objective_asked_for(tmp_path):
    found = make_trainer(tmp_path).predict(examples(6))
    assert isinstance(found.predictions, np.ndarray)
    assert found.predictions.shape == (6, 3)


def test_compute_loss_gives_the_outputs_where_it_is_asked_to(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, batch(), return_outputs=True)
    assert loss.dim() == 0
    assert [*outputs] == ["loss", "logits"]
    assert torch.equal(trainer.compute_loss(trainer.model, batch()), loss)


def test_evaluating_on_the_way_changes_nothing_in_what_is_learned(tmp_path):
    found = []
    for more in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        student = make_student()
        make_trainer(tmp_path, student, kd={"eval_dataset": examples(8, seed=5)}, **more).train()
        found.append(weights(student))
    assert torch.equal(*found)


def test_the_best_model_is_loaded_with_its_projection(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_worse", "greater_is_better": False}
    worse = iter([1.0, 2.0, 3.0])
    kd = {"eval_dataset": examples(8, seed=5), "compute_metrics": lambda _: {"worse": next(worse)}}
    student = make_student()
    trainer = make_trainer(tmp_path, student, kd=kd, **options, **best)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(folder)
    saved = load_file(folder / "objective.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.objective.state_dict().items())
    assert torch.equal(load_file(folder / "model.safetensors")["classifier.weight"], student.classifier.weight)
