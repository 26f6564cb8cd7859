"""Tiny BERT models in float64 and ragged token data: what every loop of the integrations' tests trains."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from kdplug.config.distillation import DistillationConfig

LENGTH, WORDS, CLASSES = 6, 20, 3


def bert(width, layers, seed, **options):
    """A classifier without dropout, whose weights depend on ``seed`` alone."""
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }
    config = BertConfig(
        vocab_size=WORDS,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
        initializer_range=0.5,
        **sizes,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).double()


def make_student(**options):
    return bert(4, 1, seed=1, **options)


def make_teacher(seed=2):
    return bert(6, 2, seed=seed)


def examples(count, *, ragged=True, seed=3):
    """Token ids, a mask that ends anywhere, and a label, one dict for each example."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (count,), generator=generator) if ragged else torch.full((count,), LENGTH)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    masks = (torch.arange(LENGTH) < lengths[:, None]).long()
    rows = zip(ids, masks, labels, strict=True)
    return [{"input_ids": one, "attention_mask": mask, "labels": label} for one, mask, label in rows]


def unlabelled(rows, *places):
    """The same rows, of every four those at ``places`` without a label."""
    none = torch.tensor(-100)
    return [{**row, "labels": none if number % 4 in places else row["labels"]} for number, row in enumerate(rows)]


def batch(count=4):
    """The first examples of those that ``make_trainer`` trains on, as one batch."""
    rows = examples(24)[:count]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


MATCH = {
    "layer_T": -1,
    "layer_S": -1,
    "feature": "hidden",
    "loss": "hidden_mse",
    "weight": 0.5,
    "weight_scheduler": "linear_decay",
    "proj": ["linear", 4, 6, {"lr": 0.03}],
}
BY_PATH = {**MATCH, "layer_T": "bert.encoder.layer.1", "layer_S": "bert.encoder.layer.0"}


def config(match=MATCH, **options):
    """kd, the student's own loss, and one hidden match through a projection with a schedule."""
    matches = [] if match is None else [match]
    return DistillationConfig(
        **{"temperature": 2, "hard_label_weight": 0.5, "intermediate_matches": matches, **options}
    )


def arguments(folder, **options):
    """Quiet arguments for plain SGD-like training in the data's own order."""
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    plain = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    order = {"train_sampling_strategy": "sequential"}
    return TrainingArguments(output_dir=str(folder), **{**quiet, **plain, **order, **options})


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def make_trainer(folder, student=None, *, distill_config=None, teacher=None, rows=None, cls=None, kd=None, **options):
    """A quiet ``DistillationTrainer``; ``kd`` holds its own arguments, ``options`` are training arguments."""
    from kdplug.integrations.transformers import DistillationTrainer

    torch.manual_seed(0)
    trainer = (cls or DistillationTrainer)(
        make_student() if student is None else student,
        arguments(folder, **{"per_device_train_batch_size": 4, "max_steps": 3, **options}),
        train_dataset=examples(24) if rows is None else rows,
        teacher=make_teacher() if teacher is None else teacher,
        distill_config=config() if distill_config is None else distill_config,
        **(kd or {}),
    )
    trainer.objective.double()
    return trainer


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]
