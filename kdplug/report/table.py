"""Format text tables: the terms of an objective before training, and the comparison of models after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from kdplug.config.distillation import DistillationConfig
from kdplug.config.layer import Layers, in_list
from kdplug.config.layer_map import LayerMap
from kdplug.config.term import TermConfig
from kdplug.config.weight import GradientShare
from kdplug.host.name import printable
from kdplug.host.spec import ComponentSpec


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the comparison: one arm's metric, number of parameters, speed, and size on disk in bytes.

    With several seeds, ``metric`` is the mean over them and ``sd`` the standard deviation.
    """

    model: str
    metric: float
    parameters: int
    seconds_per_example: float
    bytes: int
    units_per_second: float
    sd: float | None = None


def comparison(metric: str, unit: str, lines: Iterable[Line]) -> Table:
    """Return a table with one row per model; ``metric`` heads its column, and ``unit`` is counted per second."""
    table = Table(header_style="bold")
    table.add_column("model")
    for column in (metric, "parameters", "time per example", "size on disk", f"{unit}/s"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            line.model,
            f"{line.metric:.4f}" if line.sd is None else f"{line.metric:.4f} ± {line.sd:.4f}",
            f"{line.parameters:,}",
            duration(line.seconds_per_example),
            file_size(line.bytes),
            f"{line.units_per_second:,.3g}" if line.units_per_second < 1000 else f"{line.units_per_second:,.0f}",
        )
    return table


def evaluator_table(
    models: Iterable[str], rows: Iterable[tuple[str, list[tuple[float, float | None] | None]]]
) -> Table:
    """Return a table with one row per figure of an evaluator, and a column per model: mean and standard deviation."""
    table = Table(header_style="bold")
    table.add_column("evaluator", overflow="fold")
    for model in models:
        table.add_column(model, justify="right")
    for name, figures in rows:
        table.add_row(Text(printable(name)), *("" if one is None else figure(*one) for one in figures))
    return table


def figure(value: float, sd: float | None) -> str:
    """Format a figure of unknown scale, and its standard deviation over seeds."""
    return f"{value:.4g}" if sd is None else f"{value:.4g} ± {sd:.2g}"


def file_size(count: int) -> str:
    """Format a size with three significant digits: ``12.6 kB``, ``440 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Format a duration with three significant digits: ``12.3 µs``, ``4.56 ms``, ``1.2 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def terms_table(config: DistillationConfig, names: Iterable[str]) -> Table:
    """Return a table with one row per term of a resolved config; ``names`` are the objective's terms, in its order.

    A layer map that is not resolved yet has a single row for all of its terms.
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
    """Format the temperature as ``temperature 4, scheduled by kdplug-presets:flsw(beta=1)``."""
    return _temperature(config.temperature, config.temperature_scheduler)


def _temperature(base: float, scheduler: ComponentSpec | None) -> str:
    scheduled = f", scheduled by {component_text(scheduler)}" if scheduler is not None else ""
    return f"temperature {base:g}{scheduled}"


def component_text(spec: ComponentSpec | None) -> str:
    """Format a component as ``kdplug-presets:flsw(beta=1, gamma=1)``; an empty string for ``None``."""
    if spec is None:
        return ""
    settings = [*map(_value, spec.args), *(f"{name}={_value(value)}" for name, value in spec.settings.items())]
    return f"{spec.name}({', '.join(settings)})" if settings else spec.name


def _rows(config: DistillationConfig) -> list[tuple[str, str, str]]:
    rows = [
        (_term(term, config), _weight(term.weight), component_text(term.weight_scheduler))
        for term, _, _ in config.written_terms()
        if term.weight
    ]
    if config.hard_label_weight:
        schedule = component_text(config.hard_label_weight_scheduler)
        rows.append(("the student's own loss on labels", f"{config.hard_label_weight:g}", schedule))
    return rows


def _weight(weight: float | GradientShare) -> str:
    return f"share {weight.share:g}" if isinstance(weight, GradientShare) else f"{weight:g}"


def _term(term: TermConfig, config: DistillationConfig) -> str:
    """Format a term as its loss, what it compares, and its temperature where that differs from the distillation's."""
    temperature = config.temperature_of(term)
    is_own = temperature != (config.temperature, config.temperature_scheduler)
    own = f", {_temperature(*temperature)}" if is_own else ""
    if term.layer_S is not None and term.layer_T is not None:
        return _projected(term, f"{term.feature} {_layers(term.layer_S)} → {_layers(term.layer_T)}") + own
    heads = f" on head {term.head_S or 0} → {term.head_T or 0}" if (term.head_S, term.head_T) != (None, None) else ""
    return component_text(term.loss) + heads + own


def _layer_map(layer_map: LayerMap) -> tuple[str, str, str]:
    """Return the row of a layer map; its pairs are known only once the models have run."""
    loss = _projected(layer_map, f"{layer_map.feature}, paired by {component_text(layer_map.name)}")
    return loss, f"{layer_map.weight:g} each", component_text(layer_map.weight_scheduler)


def _projected(match: TermConfig | LayerMap, what: str) -> str:
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
