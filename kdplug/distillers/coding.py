"""How a cache keeps the teacher's logits, from what the configs name."""

from __future__ import annotations

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.engine.cache_coding import Coding
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.registry import cache_codecs

_FIELD = "teacher_cache_codec"


def coding(training: TrainingConfig, distillation: DistillationConfig) -> Coding | None:
    """The codec that ``teacher_cache_codec`` names, at the distillation's temperature; ``None`` where it names none.

    Raises: ``EntryError``, ``SettingError`` for what the config says of it; ``ConfigError`` where it lacks a method, or where the
    distillation has another temperature for each item.
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
    return Coding(codec, component.qualified_spec(), float(distillation.temperature))
