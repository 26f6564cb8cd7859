"""``kdplug-run.json``: what a run was, so that it can be told apart and done again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.host.manifest import ignored_records, plugin_records
from kdplug.host.metadata import installed_version

RECORD = "kdplug-run.json"
"""The name of the file."""


def run_record(recipe: Recipe, task: Mapping[str, Any], distillation: DistillationConfig) -> dict[str, Any]:
    """Versions, plugins, and the recipe with every component's qualified name and every setting.

    ``task`` and ``distillation`` are the recipe's own in that resolved form. ``output_dir``, which decides nothing, is left
    out. ``config_sha256`` is that of the recipe in this form.
    """
    resolved = {**recipe.to_dict(), "task": dict(task), "distillation": distillation.to_dict()}
    del resolved["output_dir"]
    return {
        "kdplug": installed_version("kdplug"),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "plugins": plugin_records(),
        "ignored_plugins": ignored_records(),
        "seed": recipe.seed,
        "recipe": resolved,
        "config_sha256": config_hash(resolved),
    }


def config_hash(data: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's data as JSON; the order of its keys does not matter."""
    return sha256(json.dumps(data, sort_keys=True, allow_nan=False).encode()).hexdigest()
