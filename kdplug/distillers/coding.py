"""How a cache keeps the teacher's logits, from what the configs name."""

from __future__ import annotations

import torch

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.engine.cache_coding import Coding
from kdplug.engine.cache_mass import decoded
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import cache_codecs, losses
from kdplug.objective.batch import Batch
from kdplug.objective.pair_loss import PairLoss
from kdplug.objective.temperature import Temperature

_FIELD = "teacher_cache_codec"


def coding(training: TrainingConfig, distillation: DistillationConfig) -> Coding | None:
    """The codec that ``teacher_cache_codec`` names, at the distillation's temperature; ``None`` where it names none.

    Raises: ``EntryError``, ``SettingError`` for what the config says of it; ``ConfigError`` where it lacks a method, where the
    distillation has another temperature for each item, and where the kd loss cannot be computed from what it keeps.
    """
    if training.teacher_cache_codec is None:
        return None
    try:
        component = cache_codecs.build(training.teacher_cache_codec)
    except KdplugError as error:
        raise error.at(_FIELD) from error.__cause__
    codec = component.target
    if not isinstance(codec, CacheCodec):
        lacking = [name for name in vars(CacheCodec) if not name.startswith("_") and not hasattr(codec, name)]
        raise ConfigError(f"{component.entry.qualified} is no cache codec: it lacks {', '.join(lacking)}", field=_FIELD)
    if codec.uses_temperature and distillation.temperature_scheduler is not None:
        raise ConfigError(
            f"{component.entry.name} keeps what the teacher says at one temperature, and temperature_scheduler gives each item its "
            "own. Leave one of them out, or keep all logits: dense or hidden",
            field=_FIELD,
        )
    found = Coding(codec, component.qualified_spec(), float(distillation.temperature))
    _check_loss(found, component.entry.qualified, distillation)
    return found


def _check_loss(coding: Coding, codec: str, distillation: DistillationConfig) -> None:
    """See before the teacher runs that the kd loss can be computed from what the codec gives back."""
    if not distillation.kd_loss_weight:
        return
    logits = decoded(coding)
    if not isinstance(logits, SparseLogits):
        return
    try:
        component = losses.build(distillation.kd_loss_type, site="kd")
    except KdplugError:
        return  # the objective says what is wrong with the loss
    temperature = Temperature(distillation.temperature, None)
    loss = PairLoss(component, temperature, shifts=distillation.probability_shift)
    batch = Batch(Outputs(), (Outputs(),), 0.0, 0, 1)
    try:
        loss.check(logits, torch.zeros(1, dtype=torch.int64), batch)
    except KdplugError as error:
        told = error.message if error.field == "teacher.logits" else str(error)
        raise ConfigError(f"{codec} gives SparseLogits. {told}", field=_FIELD) from error
