"""The terms of an objective, as a table that one can read before training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from kdplug.config.distillation import DistillationConfig
from kdplug.config.layer import Layers, in_list
from kdplug.config.layer_map import LayerMap
from kdplug.config.match import IntermediateMatch
from kdplug.host.spec import ComponentSpec


def terms_table(config: DistillationConfig, names: Iterable[str]) -> Table:
    """One row for each term of a resolved config; ``names`` are those of the objective's terms, in its order.

    A layer map whose layers are not counted yet has a row for all of its terms.
    """
    table = Table(header_style="bold")
    for column in ("term", "loss", "weight", "schedule"):
        table.add_column(column, overflow="fold")
    for name, row in zip(names, _rows(config), strict=True):
        table.add_row(*map(Text, (name, *row)))
    for layer_map in config.layer_map:
        if layer_map.weight:
            table.add_row(*map(Text, ("layer_map", *_layer_map(layer_map))))
    return table


def temperature_line(config: DistillationConfig) -> str:
    """``temperature 4, scheduled by kdplug-presets:flsw(beta=1)``."""
    scheduler = config.temperature_scheduler
    scheduled = f", scheduled by {component_text(scheduler)}" if scheduler is not None else ""
    return f"temperature {config.temperature:g}{scheduled}"


def component_text(spec: ComponentSpec | None) -> str:
    """``kdplug-presets:flsw(beta=1, gamma=1)``, and nothing where there is no component."""
    if spec is None:
        return ""
    settings = [*map(_value, spec.args), *(f"{name}={_value(value)}" for name, value in spec.settings.items())]
    return f"{spec.name}({', '.join(settings)})" if settings else spec.name


def _rows(config: DistillationConfig) -> list[tuple[str, str, str]]:
    rows = []
    if config.kd_loss_weight:
        kd = component_text(config.kd_loss_type)
        rows.append((kd, f"{config.kd_loss_weight:g}", component_text(config.kd_loss_weight_scheduler)))
    rows += [
        (_match(match), f"{match.weight:g}", component_text(match.weight_scheduler))
        for match in config.intermediate_matches
        if match.weight
    ]
    if config.hard_label_weight:
        schedule = component_text(config.hard_label_weight_scheduler)
        rows.append(("the student's own loss on labels", f"{config.hard_label_weight:g}", schedule))
    return rows


def _match(match: IntermediateMatch) -> str:
    return _projected(match, f"{match.feature} {_layers(match.layer_S)} → {_layers(match.layer_T)}")


def _layer_map(layer_map: LayerMap) -> tuple[str, str, str]:
    """The pairs are known once the models have run."""
    loss = _projected(layer_map, f"{layer_map.feature}, paired by {component_text(layer_map.name)}")
    return loss, f"{layer_map.weight:g} each", component_text(layer_map.weight_scheduler)


def _projected(match: IntermediateMatch | LayerMap, what: str) -> str:
    text = f"{component_text(match.loss)} on {what}"
    if match.proj is None:
        return text
    proj = match.proj
    options = "".join(f", {name}={_value(value)}" for name, value in proj.options.items())
    return f"{text}, projected by {component_text(proj.component)} {proj.in_dim} → {proj.out_dim}{options}"


def _layers(layers: Layers) -> str:
    return "-".join(map(str, in_list(layers)))


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
