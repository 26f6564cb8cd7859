"""Default adaptor, batch columns and output arguments for transformers models."""

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
from kdplug.contracts.vocabulary import EXAMPLE_IDS, EXTRAS
from kdplug.engine.forward_state import random_state_kept
from kdplug.engine.training_module import Adaptor, to_device
from kdplug.errors import ConfigError, RunError
from kdplug.integrations.transformers.accumulation import IGNORED
from kdplug.objective.capture.path import Side


def adapt(batch: Mapping[str, Any], outputs: Any, *, shifted: bool = False) -> Outputs:
    """Return the model's outputs and labels: the default adaptor.

    ``attention_mask`` masks features and per-token logits.

    Set ``shifted`` for a causal model, whose logits at a position predict the next label: each label moves to the
    logits that predict it, and the last position gets none.

    Labels of -100 do not mask distillation terms; only the student's own loss ignores them. To change this, write an
    adaptor.
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
    """Return the labels, aligned with the logits that predict them. A collator may have shifted them already."""
    labels = batch.get("labels")
    if not shifted:
        return labels
    ready = batch.get("shift_labels")
    if ready is not None or not isinstance(labels, Tensor):
        return ready
    return pad(labels[..., 1:], (0, 1), value=IGNORED)


TEACHER = "teacher"
"""The batch key of a mapping that only the teachers receive, for example from a different tokenizer."""


def columns(model: nn.Module) -> frozenset[str] | None:
    """Return the named arguments of a model's forward; ``None`` if it only takes ``*args`` or ``**kwargs``."""
    core = getattr(model, "get_base_model", lambda: model)()
    kinds = inspect.Parameter
    found = inspect.signature(core.forward).parameters.values()
    named = frozenset(one.name for one in found if one.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL))
    return named or None


class Columns:
    """Splits batches between a student and its teachers.

    The student gets all columns except those that only a teacher takes. A teacher gets the columns that its forward
    names, from the mapping under ``teacher`` if the batch has one, else from the batch. Labels are left out, unless the
    teacher is an encoder-decoder, which builds its decoder inputs from them.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module], labels: Iterable[str]) -> None:
        self._student = columns(student)
        self._teachers = {key: columns(model) for key, model in teachers.items()}
        self._labelled = {key for key, model in teachers.items() if _is_encoder_decoder(model)}
        self._labels = frozenset(labels)

    @property
    def of_teachers(self) -> frozenset[str]:
        """All columns that any teacher takes."""
        return frozenset().union(*(found for found in self._teachers.values() if found is not None))

    def student(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        others = self.of_teachers - self._student if self._student is not None else frozenset()
        hidden = {TEACHER, EXTRAS} if EXAMPLE_IDS in (self._student or ()) else {TEACHER, EXTRAS, EXAMPLE_IDS}
        return {key: value for key, value in batch.items() if key not in hidden and key not in others}

    def teacher(self, key: str, batch: Mapping[str, Any]) -> dict[str, Any]:
        hidden = frozenset() if key in self._labelled else self._labels
        taken = self._teachers[key]
        return {
            name: value
            for name, value in self.seen(batch).items()
            if name not in hidden and name != EXTRAS and (name in taken if taken is not None else name != EXAMPLE_IDS)
        }

    @staticmethod
    def seen(batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that a teacher's adaptor gets: the teacher's part of the batch, with labels."""
        own = batch.get(TEACHER)
        found = own if isinstance(own, Mapping) else batch
        return {name: value for name, value in found.items() if name != TEACHER}

    def adapted(self, adaptor: Adaptor, batch: Mapping[str, Any], outputs: Any) -> Any:
        """Return the result of a teacher's ``adaptor`` for its part of ``batch``.

        Raises: ``RunError`` if it reads labels that this part does not have.
        """
        seen = self.seen(batch)
        try:
            return adaptor(seen, outputs)
        except KeyError as error:
            missing = error.args[0] if error.args else None
            if missing not in self._labels or missing in seen:
                raise
            where, source = "the batch", "the dataset or the collator"
            if TEACHER in batch:
                where, source = f"the mapping under {TEACHER!r} in the batch", "the collator"
            keys = f"has only the keys {', '.join(seen)}" if seen else "is empty"
            text = f"reads {missing!r}, but {where} {keys}. Make {source} add {missing!r} to {where}"
            raise RunError(text, field="adaptor_T") from error


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


_ARGUMENTS = {"hidden": ("output_hidden_states", "hidden_states"), "attention": ("output_attentions", "attentions")}
"""Maps each feature to the forward argument that enables it, and to the field of the model's output."""


class Features:
    """Forward arguments that make a transformers model return the features read by the config; empty for other models.

    Raises: ``ConfigError`` if the model's attention implementation returns no attention scores.
    """

    def __init__(self, model: nn.Module, config: DistillationConfig, side: Side) -> None:
        self._asked: dict[str, str] = {}
        core = _pretrained(model)
        if core is None:
            return
        for feature, field in _by_index(config, side):
            argument, output = _ARGUMENTS[feature]
            if feature == "attention":
                _check_attention(core, side, field)
            if not getattr(core.config, argument, False):
                self._asked[argument] = output

    @property
    def arguments(self) -> dict[str, bool]:
        """Extra keyword arguments for the model's forward."""
        return dict.fromkeys(self._asked, True)

    def without(self, outputs: Any) -> Any:
        """Return the model's outputs without the features that only the objective needs."""
        extra = {*self._asked.values()}
        if not extra or not isinstance(outputs, Mapping):
            return outputs
        rebuilt: Any = type(outputs)(**{key: value for key, value in outputs.items() if key not in extra})
        return rebuilt


def _by_index(config: DistillationConfig, side: Side) -> Iterator[tuple[str, str]]:
    """Yield each feature that a term or layer map with a weight reads by index, and the config field."""
    for term, _, where in config.written_terms():
        layers = term.layer_S if side == "student" else term.layer_T
        if term.weight and layers is not None and any(isinstance(layer, int) for layer in in_list(layers)):
            yield term.feature, ".".join(map(str, (*where.path, "feature")))
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
    """Return the transformers model, unwrapped from an adapter library's model (PEFT); ``None`` for other models."""
    if isinstance(model, PreTrainedModel):
        return model
    within = getattr(model, "get_base_model", None)
    core = within() if callable(within) else None
    return core if isinstance(core, PreTrainedModel) else None


_EXAMPLES = 2


def first_batch(trainer: Trainer, device: torch.device) -> dict[str, Any] | None:
    """Return the collated first examples of the training data, or of the evaluation data if there is no training data.

    No sampler is used, and the random state is restored.
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
