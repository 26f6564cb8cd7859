"""Distillation with ``transformers.Trainer``: the usual arguments, callbacks and data, plus a teacher and a config.

python examples/trainer.py [EPOCHS]
"""

from __future__ import annotations

import sys
import tempfile
from random import Random
from typing import Any

from data import reviews
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

import kdplug
from kdplug.integrations.transformers import DistillationTrainer

LENGTH = 12


def rows(found: list[dict[str, Any]], places: dict[str, int]) -> list[dict[str, Any]]:
    """Turn words into ids, in place of a tokenizer."""
    made = []
    for row in found:
        ids = [places.setdefault(word, len(places) + 1) for word in row["text"].split()]
        padding = [0] * (LENGTH - len(ids))
        mask = [1] * len(ids) + padding
        made.append({"input_ids": ids + padding, "attention_mask": mask, "labels": int(row["label"] == "positive")})
    return made


def bert(layers: int, width: int, words: int) -> BertForSequenceClassification:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 2 * width}
    return BertForSequenceClassification(
        BertConfig(vocab_size=words, num_attention_heads=2, max_position_embeddings=LENGTH, **sizes)
    )


def arguments(folder: str, epochs: float, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        save_strategy="no",
        logging_steps=25,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(epochs: float = 8) -> None:
    places: dict[str, int] = {}
    train, test = (rows(reviews(count, Random(count)), places) for count in (1000, 400))
    shared = {"train_dataset": train, "eval_dataset": test, "compute_metrics": accuracy}
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        teacher = bert(layers=2, width=64, words=len(places) + 1)
        Trainer(teacher, arguments(folder, 2 * epochs), **shared).train()

        config = kdplug.DistillationConfig(
            temperature=2,
            kd_loss_type={"name": "ce", "t2": True},
            hard_label_weight=0.5,
            intermediate_matches=[
                {
                    "layer_T": -1,
                    "layer_S": -1,
                    "feature": "hidden",
                    "loss": "hidden_mse",
                    "proj": ["linear", "auto", "auto"],
                }
            ],
        )
        student = bert(layers=2, width=48, words=len(places) + 1)
        trainer = DistillationTrainer(
            student, arguments(folder, epochs), teacher=teacher, distill_config=config, **shared
        )
        trainer.train()
        found = trainer.evaluate()
        trainer.save_model(f"{folder}/student")
        BertForSequenceClassification.from_pretrained(f"{folder}/student")  # the student only, without the projection
    reference = Trainer(teacher, arguments(folder, 1), **shared).evaluate()
    print(f"teacher {reference['eval_accuracy']:.3f}, student {found['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
