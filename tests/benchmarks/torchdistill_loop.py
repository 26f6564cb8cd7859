"""A run of torchdistill for ``step_overhead.py``: its ``DistillationBox`` in the loop of its own example.

The box is torchdistill's; the loop around it, with ``MetricLogger``, is what ``examples/torchvision/image_classification.py`` in
its repository does for each batch, for the package has none. torchdistill imports names of torchvision for models and data sets
that this does not use. torchvision is not installed here, since its build breaks beside the CPU build of torch, so empty stand-ins
take their places while torchdistill is imported, and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import time
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

_STAND_INS = {
    "torchvision": ("datasets", "models"),
    "torchvision.datasets": (),
    "torchvision.models": (),
    "torchvision.models.densenet": ("_DenseBlock", "_Transition"),
    "torchvision.models.resnet": ("BasicBlock", "conv1x1"),
}
_LOG_EVERY = 10


def missing() -> str | None:
    """Why torchdistill cannot run here, ``None`` where it can."""
    if importlib.util.find_spec("torchdistill") is None:
        return "torchdistill is not installed: python -m pip install --no-deps torchdistill pyyaml scipy"
    return None


@contextlib.contextmanager
def torchvision_stood_in_for() -> Iterator[None]:
    """Inside the block the names that torchdistill imports from torchvision are empty classes, unless it is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    made = {name: types.ModuleType(name) for name in _STAND_INS}
    for name, attributes in _STAND_INS.items():
        for attribute in attributes:
            setattr(made[name], attribute, made.get(f"{name}.{attribute}", type(attribute, (nn.Module,), {})))
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def train(
    student: nn.Module, teacher: nn.Module, loader: Iterable[Any], pairs: dict[str, str], *, hard_labels: bool
) -> None:
    """Train on the kd loss at temperature 4, a mean squared error for each pair of modules (student's: teacher's) and labels.

    torchdistill multiplies the kd loss with the squared temperature where there are labels; ``beta`` takes that back.
    """
    with torchvision_stood_in_for():
        from torchdistill.core.distillation import get_distillation_box
        from torchdistill.misc.log import MetricLogger, SmoothedValue
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    device = torch.device("cpu")
    box = get_distillation_box(teacher, student, {}, _config(pairs, hard_labels=hard_labels), device, [], False, 1)
    box.train_data_loader = loader
    teacher.eval()
    box.pre_epoch_process(epoch=0)
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for inputs, labels in logger.log_every(box.train_data_loader, _LOG_EVERY, "Epoch: [0]"):
        start = time.time()
        loss = box.forward_process(inputs.to(device), labels.to(device), None)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["img/s"].update(inputs.shape[0] / (time.time() - start))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"The training loop was broken due to loss = {loss}")
    box.post_epoch_process()
    box.clean_modules()


def _config(pairs: dict[str, str], *, hard_labels: bool) -> dict[str, Any]:
    logits = {f"{side}_module_{what}": value for side in ("student", "teacher") for what, value in _HEAD.items()}
    balance = {"alpha": 1.0, "beta": 1 / 16} if hard_labels else {"alpha": None, "beta": 1.0}
    kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": 4.0, **balance}}
    terms = {name: _match(name, other) for name, other in pairs.items()}
    return {
        "num_epochs": 1,
        "teacher": {
            "forward_proc": "forward_batch_only",
            "requires_grad": False,
            "forward_hook": {"output": ["head", *pairs.values()]},
        },
        "student": {"forward_proc": "forward_batch_only", "forward_hook": {"output": ["head", *pairs]}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}, **terms}},
        },
    }


_HEAD = {"path": "head", "io": "output"}


def _match(student: str, teacher: str) -> dict[str, Any]:
    return {
        "criterion": {"key": "MSELoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": student, "io": "output"},
                "target": {"is_from_teacher": True, "module_path": teacher, "io": "output"},
            },
        },
        "weight": 1.0,
    }
