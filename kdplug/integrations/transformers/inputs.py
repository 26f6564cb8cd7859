"""Which features a config reads by index, and how transformers models are asked for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, Trainer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.layer import in_list
from kdplug.contracts.outputs import Outputs
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.training_module import to_device
from kdplug.errors import ConfigError
from kdplug.integrations.transformers.accumulation import IGNORED
from kdplug.objective.capture.path import Side


def adapt(batch: Mapping[str, Any], outputs: Any, *, shifted: bool = False) -> Outputs:
    """The model's outputs, with ``attention_mask`` as the mask of features, and of logits that are one per token, and with
    the batch's ``labels``. ``shifted`` is for a causal model, whose logits at a position predict the next label: each label
    moves to the logits that predict it, and the last position has none.

    ``labels`` of -100 mask nothing here: they say where the student's own loss counts. An adaptor can say otherwise.
    """
    read = Outputs.read(outputs, "outputs")
    mask, labels = batch.get("attention_mask"), _labels(batch, shifted=shifted)
    more: dict[str, Any] = {}
    if isinstance(mask, Tensor) and mask.dim() == 2:
        more["inputs_mask"] = mask
        if read.logits and all(len(logits.shape) == 3 and logits.shape[:2] == mask.shape for logits in read.logits):
            more["logits_mask"] = mask
    if isinstance(labels, Tensor):
        more["labels"] = labels
    return replace(read, **more)


def _labels(batch: Mapping[str, Any], *, shifted: bool) -> Any:
    """The labels, each at the position of the logits that predict it. A collator may have shifted them already."""
    labels = batch.get("labels")
    if not shifted:
        return labels
    ready = batch.get("shift_labels")
    if ready is not None or not isinstance(labels, Tensor):
        return ready
    return pad(labels[..., 1:], (0, 1), value=IGNORED)


TEACHER = "teacher"
"""The key of a batch under which a collator may put a mapping for the teachers alone, as with a tokenizer of their own."""


def columns(model: nn.Module) -> frozenset[str] | None:
    """The named arguments of a model's forward; ``None`` where it takes anything and names nothing."""
    core = getattr(model, "get_base_model", lambda: model)()
    kinds = inspect.Parameter
    found = inspect.signature(core.forward).parameters.values()
    named = frozenset(one.name for one in found if one.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL))
    return named or None


class Columns:
    """Divides batches between a student and its teachers.

    The student gets all but what just a teacher takes. A teacher gets what its forward names, without the labels, unless it
    makes its decoder's inputs of them; of the batch, or of what stands under ``teacher`` in it.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module], labels: Iterable[str]) -> None:
        self._student = columns(student)
        self._teachers = {key: columns(model) for key, model in teachers.items()}
        self._labelled = {key for key, model in teachers.items() if _is_encoder_decoder(model)}
        self._labels = frozenset(labels)

    @property
    def of_teachers(self) -> frozenset[str]:
        """Every column that some teacher takes."""
        return frozenset().union(*(found for found in self._teachers.values() if found is not None))

    def student(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        others = self.of_teachers - self._student if self._student is not None else frozenset()
        return {key: value for key, value in batch.items() if key != TEACHER and key not in others}

    def teacher(self, key: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        own = batch.get(TEACHER)
        found = own if isinstance(own, Mapping) else batch
        hidden = frozenset() if key in self._labelled else self._labels
        taken = self._teachers[key]
        return {
            name: value
            for name, value in found.items()
            if name != TEACHER and name not in hidden and (taken is None or name in taken)
        }


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


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


_EXAMPLES = 2


def first_batch(trainer: Trainer, device: torch.device) -> dict[str, Any] | None:
    """The collated first examples of the training data, or of the evaluation data where there is none.

    The random state is as before afterwards, and no sampler has drawn from it.
    """
    data = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if data is None:
        return None
    with random_state_kept():
        batch = _collated(trainer, data)
    moved: dict[str, Any] = to_device(batch, device)
    return moved


def _collated(trainer: Trainer, data: Any) -> Any:
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)  # noqa: SLF001  as its own loaders do
    if isinstance(data, IterableDataset) or not callable(getattr(data, "__len__", None)):
        return collate(list(islice(data, _EXAMPLES)))
    return collate([data[place] for place in range(min(_EXAMPLES, len(data)))])
