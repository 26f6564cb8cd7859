"""What each config key means, and what an entry's documentation says about its settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_LOOP = {
    "gradient_accumulation_steps": "batches for one optimizer step; the last ones of an epoch count even where they are fewer",
    "normalization": "what a mean over tokens or items runs over: the `global` batch of all micro-batches and processes, or "
    "each `micro_batch` alone (faster where masks differ between micro-batches, and another gradient)",
    "ckpt_frequency": "checkpoints in an epoch; 0 for none, in a recipe for one at the end of each training",
    "ckpt_epoch_frequency": "checkpoints only in every so many epochs",
    "ckpt_steps": "optimizer steps between checkpoints where training is counted in steps",
    "keep_last": "checkpoints that stay, the latest ones; none for all of them",
    "log_dir": "where TensorBoard scalars go (extra `tensorboard`); none for no scalars",
    "trackers": "who gets the losses besides `log.jsonl`: a list of `tensorboard`, `wandb` and `mlflow` (extras of the same "
    "names); none for TensorBoard where there is a `log_dir`",
    "shard_teacher": "whether the frozen teacher is spread over the processes too; needs FSDP2",
    "device": "`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; under `accelerate launch` leave it at `auto`",
    "precision": "precision of the forward passes; losses are always computed in float32",
    "on_nonfinite": "what a loss or gradient that is not finite does: `stop` the run with an error, or `skip` the step",
    "teacher_cache": "folder of what `is_caching_logits` keeps; none for memory",
    "teacher_cache_dtype": "`float16` or `bfloat16` to keep less than the teacher's own precision",
    "teacher_cache_codec": "how the cache keeps logits: `{name: topk_tail, k: 64}`; none for as they are",
    "logging_steps": "optimizer steps between two sets of scalars",
}

MEANINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "DistillationConfig": {
            "temperature": "divides the logits of both models before they are compared",
            "temperature_scheduler": "makes a temperature for each item out of the base temperature and the logits",
            "kd_loss_type": "the loss between the logits of student and teacher",
            "kd_loss_weight": "weight of the kd loss; with a scheduler, the base weight",
            "kd_loss_weight_scheduler": "scales the weight over the run",
            "hard_label_weight": "weight of the losses that the student's adaptor returns; with a scheduler and no weight given, 1",
            "hard_label_weight_scheduler": "scales the weight over the run",
            "teacher_combiner": "makes the logits of several teachers into those of one; nothing to do with one teacher",
            "logit_chunk": "how many items' logits are multiplied out at once where a model returns `FactoredLogits`: a number, "
            "`auto` for what a memory budget allows, `whole` for all of them",
            "padded_vocabulary": "what is done where student and teacher differ in the number of classes: `refuse`, or `drop` the "
            "last ones of the longer side, which pad the vocabulary of one tokenizer",
            "probability_shift": "where the teacher is wrong, swap its highest logit with that of the true label",
            "is_caching_logits": "ask the teacher once about every example, and keep its logits and matched features for all epochs",
            "intermediate_matches": "losses between features of the two models",
            "layer_map": "matches by rule: `{name: uniform, feature: hidden, loss: hidden_mse}`, a list of such, or none",
            "plugins": 'packages that must be installed: `{require: ["kdplug-myloss>=0.2"]}`',
        },
        "IntermediateMatch": {
            "layer_T": "the teacher's layer: index in what its adaptor returns (negative from the end), module path, or a list",
            "layer_S": "the same for the student",
            "feature": "`hidden` or `attention`; may be left out where both layers are module paths",
            "loss": "the loss between the two features",
            "weight": "weight of the match; with a scheduler, the base weight",
            "weight_scheduler": "scales the weight over the run",
            "proj": "projection that maps the student's feature to the teacher's width",
            "name": "name of the term in reports; otherwise `feature_loss_S_T`",
            "teacher": "which teacher is read, by index or key; to be given where there are several",
        },
        "LayerMap": {
            "name": "the rule: which layer of the student learns from which layer of the teacher",
            "loss": "the loss of each match",
            "feature": "`hidden` or `attention`; may be left out where both sides are module paths",
            "weight": "weight of each match; with a scheduler, the base weight",
            "weight_scheduler": "scales the weights over the run",
            "proj": "projection of each match, which maps the student's feature to the teacher's width",
            "layers_T": "number of the teacher's layers; otherwise read from `layer_T` or from the first batch",
            "layers_S": "the same for the student",
            "layer_T": "the teacher's layers as module paths or globs, such as `encoder.layer.*`",
            "layer_S": "the same for the student",
            "embeddings": "whether the layers begin with what the embeddings put out; otherwise true of `hidden` alone",
            "teacher": "which teacher is read, by index or key; to be given where there are several",
        },
        "TrainingConfig": {
            **_LOOP,
            "output_dir": "where checkpoints go; made by the run, not by the config",
            "seed": "seeds the run",
        },
        "RecipeTraining": {
            **_LOOP,
            "optimizer": "a class in `torch.optim`",
            "lr": "learning rate",
            "weight_decay": "weight decay",
            "batch_size": "examples in a batch",
            "eval_batch_size": "examples in a batch when a model is evaluated",
            "num_epochs": "passes over the data; exactly one of this and `num_steps` is given",
            "num_steps": "optimizer steps",
            "lr_schedule": "how the learning rate falls",
            "warmup": "share of the steps in which the learning rate rises from 0",
            "max_grad_norm": "gradients of student and projections together are clipped to this norm",
            "num_workers": "processes that load data",
        },
        "Recipe": {
            "task": "models, data, adaptors and metric, by name",
            "distillation": "a `DistillationConfig`",
            "training": "how the student is trained",
            "output_dir": "where results go; `runs/` and the task's name unless it is given",
            "seed": "seed of everything random",
            "plugins": 'packages that must be installed: `{require: ["kdplug-myloss>=0.2"]}`',
        },
    }
)
"""Model to key to meaning."""


def first_paragraph(documented: object) -> str:
    """The first paragraph of a docstring on one line, empty where there is none."""
    doc = inspect.getdoc(documented) or ""
    return " ".join(doc.split("\n\n")[0].split())


def setting_docs(documented: object, names: Iterable[str]) -> dict[str, str]:
    """What the paragraph ``Settings:`` of a docstring says about each setting, where it begins with its name or with several.

    ``Settings: ``alpha``, weight of the first part; ``beta`` and ``gamma``, of the others.`` gives ``{"alpha": "weight of the
    first part", "beta": "of the others", "gamma": "of the others"}``.
    """
    doc = inspect.getdoc(documented) or ""
    found = re.search(r"^Settings:\s*(.*?)(?:\n\n|\n(?=[A-Z]\w+: )|\Z)", doc, re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    wanted, docs = set(names), {}
    for part in re.split(r";\s+|\.\s+(?=``)", " ".join(found[1].split())):
        named, said = [], part
        while (name := re.match(r"``(\w+)``[,:]?\s+(?:and\s+(?=``))?", said)) and name[1] in wanted:
            named.append(name[1])
            said = said[name.end() :]
        docs.update(dict.fromkeys(named, said.rstrip(".")))
    return docs
