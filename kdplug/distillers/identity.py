"""What has to be the same for a run to be gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.host.metadata import installed_version
from kdplug.host.name import split_qualified
from kdplug.host.registry import cache_codecs
from kdplug.report.used_entry import used_entries

_BESIDE_THE_POINT = (
    "output_dir",
    "log_dir",
    "trackers",
    "shard_teacher",
    "logging_steps",
    "keep_last",
    "teacher_cache",
    "device",
    "ckpt_frequency",
    "ckpt_epoch_frequency",
    "ckpt_steps",
)
"""Keys of a ``TrainingConfig`` that change nothing in what is learned."""


def identity(training: TrainingConfig, distillation: Mapping[str, DistillationConfig]) -> dict[str, Any]:
    """The configs, and the versions of kdplug, torch and each plugin that they name, as plain data."""
    found = config_identity(distillation)
    if training.teacher_cache_codec is not None:
        package = cache_codecs.entry(training.teacher_cache_codec.name).dist
        found["plugins"] = dict(sorted({**found["plugins"], package: installed_version(package)}.items()))
    return {
        **found,
        "training": {key: value for key, value in training.to_dict().items() if key not in _BESIDE_THE_POINT},
    }


def config_identity(distillation: Mapping[str, DistillationConfig]) -> dict[str, Any]:
    """Distillation configs by task, and the versions of kdplug, torch and each plugin that they name, as plain data."""
    resolved = {task: config.resolved() for task, config in distillation.items()}
    entries = [entry for config in resolved.values() for entry in used_entries(config)]
    packages = {split_qualified(entry["name"])[0] for entry in entries}
    return {
        "kdplug": kdplug.__version__,
        "torch": installed_version("torch"),
        "plugins": {package: installed_version(package) for package in sorted(packages)},
        "distillation": {task: config.to_dict() for task, config in resolved.items()},
    }
