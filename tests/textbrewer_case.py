"""The distillations that the drop-in is compared on: each distiller, each loss, each option of the loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from textbrewer_twin import Case
from torch.optim.lr_scheduler import LinearLR, StepLR

EPOCHS = {"num_epochs": 5}


def match(loss: str, feature: str = "hidden", layer: Any = 1, proj: Any = None, weight: float = 1.0) -> dict[str, Any]:
    return {"layer_T": layer, "layer_S": layer, "feature": feature, "loss": loss, "weight": weight, "proj": proj}


def general(*matches: dict[str, Any], keys: str = "whole hidden attention", **options: Any) -> Case:
    return Case("General", keys, {"intermediate_matches": list(matches)}, **options)


LINEAR = ["linear", 6, 8]
KD = {
    "ce": Case(config={"temperature": 8}),
    "mse and hard labels": Case(keys="whole losses", config={"kd_loss_type": "mse", "hard_label_weight": 0.5}),
    "constant": Case(config={"temperature_scheduler": "constant"}),
    "flsw": Case(config={"temperature_scheduler": ["flsw", 1, 2]}),
    "flsw by keyword, tokens": Case(keys="token", config={"temperature_scheduler": ["flsw", {"beta": 1, "gamma": 1}]}),
    "cwsm, masked tokens": Case(keys="token logits_mask", config={"temperature_scheduler": ["cwsm", 1]}),
    "weight schedulers": Case(
        keys="whole losses",
        config={
            "kd_loss_weight": 0.5,
            "kd_loss_weight_scheduler": "linear_decay",
            "hard_label_weight_scheduler": "linear_growth",
        },
    ),
    "probability_shift": Case(keys="whole labels", config={"probability_shift": True}),
    "probability_shift of tokens": Case(keys="token tags", config={"probability_shift": True, "kd_loss_type": "mse"}),
    "two heads, two masks": Case(keys="heads head_masks losses", config={"hard_label_weight": 1}),
    "tokens, masked, mse": Case(keys="token logits_mask", config={"kd_loss_type": "mse"}),
    "hard-label weight 0": Case(keys="whole losses"),
}
MATCHES = {
    **{
        f"{name}, unmasked": general(match(name, "attention"))
        for name in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
    },
    **{
        f"{name}, masked": general(match(name, "attention"), keys="whole attention inputs_mask")
        for name in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
    },
    **{f"{name}, unmasked": general(match(name, proj=LINEAR)) for name in ("hidden_mse", "cos", "pkd")},
    **{
        f"{name}, masked": general(match(name, proj=LINEAR), keys="whole hidden inputs_mask")
        for name in ("hidden_mse", "cos", "pkd")
    },
    **{f"{name}, unmasked": general(match(name, layer=[0, 2], proj=LINEAR)) for name in ("fsp", "gram")},
    **{
        f"{name}, masked": general(match(name, layer=[2, 2], proj=LINEAR), keys="whole hidden inputs_mask")
        for name in ("fsp", "gram")
    },
    **{f"{name}, unmasked": general(match(name, layer=[0, -1])) for name in ("nst", "mmd")},
    "nst, masked, length = width": general(match("nst", layer=[1, 1]), keys="whole hidden inputs_mask", widths=(6, 6)),
    "projections with options": general(
        match("hidden_mse", proj=["relu", 6, 8, {"lr": 1e-3, "weight_decay": 0.1}]),
        match("hidden_mse", layer=2, proj=["tanh", 6, 8], weight=0.1),
        match("mmd", layer=[0, 0]),
    ),
    "matches without logits": general(match("hidden_mse", proj=LINEAR), keys="hidden losses"),
}
LOOPS = {
    "accumulation over epochs, tail": Case(train=EPOCHS, batches=21, training={"gradient_accumulation_steps": 2}),
    "accumulation over steps, tail": Case(training={"gradient_accumulation_steps": 3}),
    "mean of means": general(
        match("hidden_mse", proj=LINEAR),
        keys="token logits_mask hidden inputs_mask",
        training={"gradient_accumulation_steps": 2},
    ),
    "caching": Case(keys="token logits_mask losses", config={"is_caching_logits": True}, train=EPOCHS, batches=10),
    "caching, probability_shift": Case(
        keys="whole labels", config={"is_caching_logits": True, "probability_shift": True}, train=EPOCHS, batches=10
    ),
    "clipping": general(match("hidden_mse", proj=LINEAR), train={"num_steps": 50, "max_grad_norm": 0.1}),
    "scheduler_class": general(
        match("hidden_mse", proj=LINEAR),
        train={"num_steps": 50, "scheduler_class": StepLR, "scheduler_args": {"step_size": 7, "gamma": 0.5}},
    ),
    "everything in epochs": general(
        match("hidden_mse", proj=LINEAR),
        match("nst", layer=[2, 2]),
        keys="whole losses hidden",
        batches=21,
        train={**EPOCHS, "scheduler_class": LinearLR, "scheduler_args": {"total_iters": 30}, "max_grad_norm": 1.0},
        training={"gradient_accumulation_steps": 2, "ckpt_frequency": 3, "ckpt_epoch_frequency": 2},
    ),
    "epochs as a float": Case(
        keys="whole losses",
        config={"hard_label_weight_scheduler": "linear_growth"},
        train={"num_epochs": 5.0},
        batches=10,
        training={"ckpt_frequency": 2},
    ),
    "more checkpoints than steps": Case(train={"num_epochs": 10}, batches=5, training={"ckpt_frequency": 7}),
    "outside of with": Case(keys="whole losses", config={"hard_label_weight": 1}, in_context=False),
    "AdamW": Case(optimizer=partial(torch.optim.AdamW, lr=1e-2)),
    "two rounds": Case(keys="whole losses", config={"hard_label_weight": 1}, train={"num_steps": 25}, rounds=2),
    "postprocessor and arguments": Case(
        train={"num_steps": 50, "scale": 2.0}, change=lambda batch: {**batch, "input_ids": batch["input_ids"].flip(-1)}
    ),
}
SEVERAL = {
    "three teachers": Case("MultiTeacher", "whole losses", {"hard_label_weight": 0.3}),
    "three teachers, masked tokens, flsw": Case(
        "MultiTeacher", "token logits_mask", {"temperature_scheduler": ["flsw", 1, 1]}
    ),
    "three teachers, probability_shift": Case("MultiTeacher", "heads labels", {"probability_shift": True}),
    "three teachers, caching": Case(
        "MultiTeacher", "token logits_mask", {"is_caching_logits": True, "kd_loss_type": "mse"}, EPOCHS, batches=10
    ),
    "three tasks": Case("MultiTask", "whole losses", {"hard_label_weight": 0.3}),
    "three tasks, tau, accumulation, matches, growth": Case(
        "MultiTask",
        "whole hidden inputs_mask",
        {"intermediate_matches": [match("hidden_mse", proj=LINEAR)], "kd_loss_weight_scheduler": "linear_growth"},
        {"num_steps": 50, "tau": 0.5, "max_grad_norm": 1.0},
        {"gradient_accumulation_steps": 2},
        change=dict,
    ),
}
TRAINING = {
    "trainer, steps": Case("Train", "losses", train={"num_epochs": 0, "num_steps": 50}),
    "trainer, epochs": Case(
        "Train",
        "losses",
        train={**EPOCHS, "max_grad_norm": 0.5, "scheduler_class": StepLR, "scheduler_args": {"step_size": 9}},
        training={"gradient_accumulation_steps": 2, "ckpt_frequency": 2},
        batches=21,
    ),
}
CASES = {**KD, **MATCHES, **LOOPS, **SEVERAL, **TRAINING}
