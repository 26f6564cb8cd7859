"""Which features a config reads by index, and how transformers models are asked for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kdplug.config.distillation import DistillationConfig
from kdplug.config.layer import in_list
from kdplug.errors import ConfigError
from kdplug.objective.capture_path import Side

_QUESTIONS = {"hidden": ("output_hidden_states", "hidden_states"), "attention": ("output_attentions", "attentions")}
"""Feature to the argument that asks for it, and to the field of the model's output that brings it."""


class Features:
    """What one model has to be asked for besides its logits. A model that is none of transformers' is asked for nothing.

    Raises: ``ConfigError`` where the model's attention implementation returns no attention scores.
    """

    def __init__(self, model: nn.Module, config: DistillationConfig, side: Side) -> None:
        self._asked: dict[str, str] = {}
        core = _pretrained(model)
        if core is None:
            return
        for feature, field in _by_index(config, side):
            question, answer = _QUESTIONS[feature]
            if feature == "attention":
                _check_attention(core, side, field)
            if not getattr(core.config, question, False):
                self._asked[question] = answer

    @property
    def arguments(self) -> dict[str, bool]:
        """What to call the model with."""
        return dict.fromkeys(self._asked, True)

    def without(self, outputs: Any) -> Any:
        """The model's outputs without what only the objective asked for."""
        extra = {*self._asked.values()}
        if not extra or not isinstance(outputs, Mapping):
            return outputs
        rebuilt: Any = type(outputs)(**{key: value for key, value in outputs.items() if key not in extra})
        return rebuilt


def _by_index(config: DistillationConfig, side: Side) -> Iterator[tuple[str, str]]:
    """Each feature that a match or layer map of some weight reads by index, with the field that says so."""
    for place, match in enumerate(config.intermediate_matches):
        layers = in_list(match.layer_S if side == "student" else match.layer_T)
        if match.weight and any(isinstance(layer, int) for layer in layers):
            yield match.feature, f"intermediate_matches.{place}.feature"
    for place, layer_map in enumerate(config.layer_map):
        if layer_map.weight and (layer_map.layer_S if side == "student" else layer_map.layer_T) is None:
            yield layer_map.feature, ".".join(map(str, (*config.path_of_map(place), "feature")))


def _check_attention(model: PreTrainedModel, side: Side, field: str) -> None:
    used = model.config._attn_implementation  # noqa: SLF001  transformers has no public name for it
    if used not in ("eager", None):
        raise ConfigError(
            f"the {side} computes attention with {used!r}, which returns no attention scores. Load it with "
            f'attn_implementation="eager", or call {side}.set_attn_implementation("eager")',
            field=field,
        )


def _pretrained(model: nn.Module) -> PreTrainedModel | None:
    """The transformers model in ``model``, which may stand around it as an adapter library's wrapper does."""
    if isinstance(model, PreTrainedModel):
        return model
    within = getattr(model, "get_base_model", None)
    core = within() if callable(within) else None
    return core if isinstance(core, PreTrainedModel) else None
