"""Small files, tiny models and recipes for the tests of tasks, without network access."""

from __future__ import annotations

import csv
import random

import torch

import kdplug
from kdplug_tasks.text.setting import TokenizerSettings
from kdplug_tasks.text.tokenizer import make_tokenizer

TEXTS = ["a good film", "the plot was bad", "very good", "bad and weak", "nice film and plot", "a poor weak film"]
WORDS = {"pos": ("good", "great", "nice"), "neg": ("bad", "poor", "weak")}
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
BERT = {"model_type": "bert", "max_position_embeddings": 40, **SIZES}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
RESNET = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
TRAINED = {"train": True, "epochs": 1, "lr": 2e-3}
TOKENIZER = {"train": "bytes-bpe", "vocab": 300}


def reviews(count, seed=0):
    """Rows of text and label that a tiny model can learn."""
    draw = random.Random(seed)
    rows = []
    for place in range(count):
        label = ("neg", "pos")[place % 2]
        words = draw.choices(("the", "a", "film", "plot", "was"), k=3) + [draw.choice(WORDS[label])] * 2
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_csv(path, rows, delimiter=","):
    """Write rows with a header; return the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def tokenizer(texts=TEXTS, *, is_framed=True, vocab=300):
    """A byte-level tokenizer."""
    return make_tokenizer(TokenizerSettings(train="bytes-bpe", vocab=vocab), texts, is_framed=is_framed)


def save_model(folder, auto, config, *, seed=0, brings=None, **more):
    """Write a folder with a random model and its tokenizer; return the path."""
    import transformers

    settings = dict(config)
    made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings, **more)
    torch.manual_seed(seed)
    getattr(transformers, auto).from_config(made).save_pretrained(folder)
    if brings is not None:
        brings.save_pretrained(folder)
    return str(folder)


def task_of(**settings):
    """Return a task as a recipe builds it."""
    return kdplug.tasks.build(settings).target


def first_batch(task, part="distillation", size=4):
    """A batch of the first examples of a part."""
    data = task.data(part)
    return task.collate([data[place] for place in range(min(size, len(data)))])


def recipe(task, folder, *changes, **distillation):
    """A recipe that runs quickly."""
    data = {
        "task": task,
        "distillation": {"kd_loss_type": "ce", "hard_label_weight": 1, **distillation},
        "training": {"num_epochs": 1, "batch_size": 16, "lr": 2e-3, "device": "cpu", "ckpt_frequency": 0},
        "output_dir": str(folder),
    }
    return kdplug.Recipe.from_dict(data).with_overrides(changes)
