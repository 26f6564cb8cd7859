"""What new recipes for tasks on pretrained encoders start from.

Measured on SST-2, with students of two and three of a teacher's six layers: ``docs/explanation/benchmarks.md``.
"""

from __future__ import annotations

from typing import Any

FINE_TUNING: dict[str, Any] = {
    "lr": 2e-4,
    "weight_decay": 0.01,
    "num_epochs": 2,
    "warmup": 0.1,
    "max_grad_norm": 1.0,
}
"""Keys of ``training``."""

OF_CLASSES: dict[str, Any] = {"temperature": 4.0, "kd_loss_weight": 16.0, "hard_label_weight": 1.0}
"""Keys of ``distillation`` where the outputs are classes that exclude each other; 16 undoes the two temperatures in the gradient."""

OF_NUMBERS: dict[str, Any] = {"temperature": 1.0, "kd_loss_type": "mse", "hard_label_weight": 1.0}
"""Keys of ``distillation`` where each output stands for itself, and a softmax over all of them for nothing."""
