"""The entries that a resolved config names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig, IntermediateMatch
from kdplug.config.frozen import thaw
from kdplug.config.layer_map import LayerMap
from kdplug.host.spec import ComponentSpec


def used_entries(config: DistillationConfig) -> list[dict[str, Any]]:
    """Each entry that a resolved config uses: its place, its qualified name and all of its settings."""
    return [
        {
            "path": path,
            "name": spec.name,
            **({"args": thaw(spec.args)} if spec.args else {}),
            "settings": thaw(spec.settings),
        }
        for path, spec in _named(config)
        if spec is not None
    ]


def _named(config: DistillationConfig) -> Iterator[tuple[str, ComponentSpec | None]]:
    yield "temperature_scheduler", config.temperature_scheduler
    if config.kd_loss_weight:
        yield "kd_loss_type", config.kd_loss_type
    if config.teacher_combiner != DEFAULT_COMBINER:
        yield "teacher_combiner", config.teacher_combiner
    for field in ("kd_loss_weight_scheduler", "hard_label_weight_scheduler"):
        yield field, getattr(config, field)
    for place, match in enumerate(config.intermediate_matches):
        yield from _of_match(f"intermediate_matches.{place}", match)
    for place, layer_map in enumerate(config.layer_map):  # those whose layers are counted on the first batch
        path = ".".join(map(str, config.path_of_map(place)))
        yield f"{path}.name", layer_map.name
        yield from _of_match(path, layer_map)


def _of_match(path: str, match: IntermediateMatch | LayerMap) -> Iterator[tuple[str, ComponentSpec | None]]:
    yield f"{path}.loss", match.loss
    yield f"{path}.weight_scheduler", match.weight_scheduler
    yield f"{path}.proj", match.proj.component if match.proj is not None else None
