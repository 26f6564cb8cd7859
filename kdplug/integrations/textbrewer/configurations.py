"""TextBrewer's configs: mutable objects with resolved schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed import is_available, is_initialized

from kdplug.contracts.vocabulary import FEATURES
from kdplug.errors import ConfigError, KdplugError, UnknownKeyError, did_you_mean
from kdplug.host.bounded_json import CONFIG, read_json
from kdplug.host.registry import temperature_schedulers
from kdplug.host.spec import parse_spec
from kdplug.host.textbrewer_maps import (
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    TextBrewerCallable,
    TextBrewerMap,
)
from kdplug.objective.schedule import check_stateless

_KEYS = ("layer_T", "layer_S", "weight", "loss", "feature", "proj")


class IntermediateMatch:
    """A loss between a feature of the teacher's layer and one of the student's.

    ``proj`` is ``[name, student width, teacher width]``, optionally followed by the options of its optimizer group. The
    caller's list is copied; the attribute ``proj`` always has four elements.

    Raises: ``ConfigError``.
    """

    def __init__(
        self,
        layer_T: int | list[int],
        layer_S: int | list[int],
        weight: float,
        loss: Any,
        feature: str,
        proj: list[Any] | None = None,
    ) -> None:
        if feature not in FEATURES:
            raise ConfigError(
                f"must be one of {', '.join(FEATURES)}, got {feature!r}.{did_you_mean(str(feature), FEATURES)}",
                field="feature",
            )
        self.layer_T = _layer(layer_T, "layer_T")
        self.layer_S = _layer(layer_S, "layer_S")
        if isinstance(self.layer_T, list) != isinstance(self.layer_S, list):
            raise ConfigError(
                f"only one of layer_T {layer_T!r} and layer_S {layer_S!r} is a list. Set both to lists, or neither"
            )
        self.feature = feature
        self.weight = weight
        self.loss = loss
        self.proj = _projection(proj) if proj else None

    @classmethod
    def read(cls, match: Mapping[str, Any], place: int) -> Self:
        """Return the match at index ``place`` in a config. Raises: ``ConfigError`` with the path of the wrong field."""
        try:
            return cls.from_dict(match)
        except KdplugError as error:
            raise error.at("intermediate_matches", place) from error.__cause__

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Build a match from a mapping of the arguments."""
        for key in dict_object:
            if key not in _KEYS:
                raise UnknownKeyError(f"there is no such key.{did_you_mean(str(key), _KEYS)}", field=str(key))
        if missing := [key for key in _KEYS[:-1] if key not in dict_object]:
            raise ConfigError("is required", field=missing[0])
        return cls(**dict_object)

    def __str__(self) -> str:
        return ", ".join(f"{name} : {value}" for name, value in vars(self).items())

    def __repr__(self) -> str:
        return f"\n{type(self).__name__}: {self}"


def _layer(layer: Any, field: str) -> int | list[int]:
    if isinstance(layer, (list, tuple)) and layer and all(type(index) is int for index in layer):
        return list(layer)
    if type(layer) is not int:
        raise ConfigError(f"must be a layer's index or a list of them, got {layer!r}", field=field)
    return layer


def _projection(proj: Any) -> list[Any]:
    shown = f"[name, student width, teacher width, options], got {proj!r}"
    if not isinstance(proj, (list, tuple)) or len(proj) < 3 or not all(type(width) is int for width in proj[1:3]):
        raise ConfigError(f"must be {shown}", field="proj")
    if len(proj) > 3 and not isinstance(proj[3], dict):
        raise ConfigError(f"the fourth element must be a dict of optimizer options: {shown}", field="proj")
    name, student, teacher, *rest = proj
    try:
        PROJ_MAP[name]
    except KdplugError as error:
        raise error.at("proj") from error.__cause__
    return [name, student, teacher, dict(rest[0]) if rest else {}]


__all__ = ["Config", "DistillationConfig", "IntermediateMatch", "TrainingConfig"]


class Config:
    """Base class of both configs: reads a dict or a JSON file, and prints the fields."""

    @classmethod
    def from_json_file(cls, json_filename: str | Path) -> Self:
        """Read a config from a JSON file."""
        return cls.from_dict(read_json(Path(json_filename), CONFIG))

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """Build a config from a dict of the arguments. Raises: ``TypeError`` for a key that does not exist."""
        return cls(**dict_object)

    def __str__(self) -> str:
        return "".join(f"{name} : {value}\n" for name, value in vars(self).items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n{self}"


class TrainingConfig(Config):
    """Training settings. Creates the folder ``output_dir`` immediately, as in TextBrewer.

    * ``gradient_accumulation_steps``: batches per optimizer step.
    * ``ckpt_frequency`` checkpoints in every ``ckpt_epoch_frequency``-th epoch; with ``num_steps``, one every
      ``ckpt_steps`` and one at the end.
    * ``log_dir``: folder for TensorBoard; ``None`` disables it.
    * ``device``: by default the GPU if available, else the CPU.
    * ``fp16``: half precision by ``torch.autocast`` with loss scaling, except at ``fp16_opt_level="O0"``.
    * ``data_parallel`` wraps the models in ``DataParallel``; ``local_rank >= 0`` wraps the student in
      ``DistributedDataParallel``, and requires an initialized process group.

    Raises: ``ConfigError`` if ``local_rank`` is set without a process group, or a number of batches or epochs is not a
    whole number of at least 1.
    """

    def __init__(
        self,
        gradient_accumulation_steps: int = 1,
        ckpt_frequency: int = 1,
        ckpt_epoch_frequency: int = 1,
        ckpt_steps: int | None = None,
        log_dir: str | Path | None = None,
        output_dir: str | Path = "./saved_models",
        device: str | torch.device | None = None,
        fp16: bool = False,
        fp16_opt_level: str = "O1",
        data_parallel: bool = False,
        local_rank: int = -1,
    ) -> None:
        for field, number in (
            ("gradient_accumulation_steps", gradient_accumulation_steps),
            ("ckpt_epoch_frequency", ckpt_epoch_frequency),
        ):
            if number < 1 or number % 1:
                raise ConfigError(f"must be a whole number of at least 1, got {number}", field=field)
        if local_rank != -1 and not (is_available() and is_initialized()):
            raise ConfigError(
                f"is {local_rank}, which requires distributed training, but there is no process group. Call "
                "torch.distributed.init_process_group first, or leave local_rank at -1",
                field="local_rank",
            )
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.ckpt_frequency = ckpt_frequency
        self.ckpt_epoch_frequency = ckpt_epoch_frequency
        self.ckpt_steps = ckpt_steps
        self.log_dir = log_dir
        self.output_dir = output_dir
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        self.fp16 = fp16
        self.fp16_opt_level = fp16_opt_level
        self.data_parallel = data_parallel
        self.local_rank = local_rank
        if self.rank == 0:
            Path(output_dir).mkdir(parents=True, exist_ok=True)

    @property
    def rank(self) -> int:
        """The rank of this process; 0 for a single process."""
        return 0 if self.local_rank == -1 else torch.distributed.get_rank()


class DistillationConfig(Config):
    """The loss: the weighted sum of kd loss, hard-label loss and intermediate matches.

    All names are looked up in kdplug's registries. ``"none"`` and ``None`` both mean no scheduler. From the second step
    on, a weight scheduler's value replaces the weight; ``train()`` restores the weight at its end.

    Raises: ``EntryError``, ``SettingError`` for a scheduler that does not exist or lacks a setting; ``ConfigError`` for
    an invalid match, a switch that is not a bool, or a weight that is not finite.
    """

    def __init__(
        self,
        temperature: float = 4,
        temperature_scheduler: Any = "none",
        hard_label_weight: float = 0,
        hard_label_weight_scheduler: Any = "none",
        kd_loss_type: Any = "ce",
        kd_loss_weight: float = 1,
        kd_loss_weight_scheduler: Any = "none",
        probability_shift: bool = False,
        intermediate_matches: list[dict[str, Any]] | None = None,
        is_caching_logits: bool = False,
    ) -> None:
        for field, switch in (("probability_shift", probability_shift), ("is_caching_logits", is_caching_logits)):
            if not isinstance(switch, bool):
                raise ConfigError(f"must be True or False, got {switch!r}", field=field)
        for field, weight in (("hard_label_weight", hard_label_weight), ("kd_loss_weight", kd_loss_weight)):
            if not math.isfinite(weight):
                raise ConfigError(f"must be finite, got {weight}", field=field)
        self.temperature = temperature
        self.temperature_scheduler = _scheduler(TEMPERATURE_SCHEDULER, temperature_scheduler, "temperature_scheduler")
        self.hard_label_weight = hard_label_weight
        self.hard_label_weight_scheduler = _scheduler(
            WEIGHT_SCHEDULER, hard_label_weight_scheduler, "hard_label_weight_scheduler"
        )
        self.kd_loss_type = kd_loss_type
        self.kd_loss_weight = kd_loss_weight
        self.kd_loss_weight_scheduler = _scheduler(
            WEIGHT_SCHEDULER, kd_loss_weight_scheduler, "kd_loss_weight_scheduler"
        )
        self.probability_shift = probability_shift
        self.intermediate_matches = [
            IntermediateMatch.read(match, place) for place, match in enumerate(intermediate_matches or [])
        ]
        self.is_caching_logits = is_caching_logits


def _scheduler(known: TextBrewerMap, spec: Any, field: str) -> Callable[..., Any] | None:
    if spec is None or spec == "none":
        return None
    try:
        if known is TEMPERATURE_SCHEDULER and not temperature_schedulers.entry(parse_spec(spec).name).positional:
            temperature_schedulers.build(spec)  # raises if settings are missing; the map would return a builder
        found: Callable[..., Any] = known[spec]
        if known is WEIGHT_SCHEDULER and isinstance(found, TextBrewerCallable):
            check_stateless(found.component)
    except KdplugError as error:
        raise error.at(field) from error.__cause__
    return found
