"""How a student is trained, apart from what it learns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdplug.config.model import CacheCodecComponent, ConfigModel, Count, Text, WholeNumber
from kdplug.config.words import in_words, shown
from kdplug.errors import ConfigError, did_you_mean

_DEVICES = ("auto", "cpu", "cuda", "mps")
_DEVICE = r"auto|cpu|mps|cuda(:\d+)?"


def _read_device(data: object) -> object:
    if type(data).__module__ == "torch" and type(data).__name__ == "device":  # TextBrewer's scripts pass the object
        data = str(data)
    if not isinstance(data, str) or re.fullmatch(_DEVICE, data) is None:
        near = did_you_mean("cuda" if data == "gpu" else data, _DEVICES) if isinstance(data, str) else ""
        raise ConfigError(f"must be auto, cpu, cuda, cuda:N or mps, got {shown(data)}.{near}".rstrip("."))
    return data


Device = Annotated[str, BeforeValidator(_read_device), Field(pattern=f"^({_DEVICE})$")]


class LoopConfig(ConfigModel):
    """What ``TrainingConfig`` and the ``training`` of a recipe have in common.

    ``ckpt_frequency`` counts checkpoints per epoch (0: none), written in every ``ckpt_epoch_frequency``-th epoch;
    ``ckpt_steps`` is the optimizer steps between checkpoints where training is counted in steps; of all of them the last
    ``keep_last`` stay (``None``: every one). ``log_dir`` gets
    TensorBoard scalars, every ``logging_steps`` optimizer steps; ``trackers`` names who else does (``None``: TensorBoard alone,
    where there is a ``log_dir``). ``fp16: true`` is accepted for ``precision: fp16``.
    ``teacher_cache`` is the folder of what ``is_caching_logits`` keeps (``None``: in memory), ``teacher_cache_dtype`` what it is
    narrowed to; ``teacher_cache_codec`` names how its logits are kept (``None``: as they are).
    """

    retired: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "fp16_opt_level": "apex and its levels are gone. Write precision: fp16 or precision: bf16",
            "data_parallel": "is gone. For several devices start the script with 'accelerate launch'",
            "local_rank": "is gone. For several devices start the script with 'accelerate launch', which sets the rank",
        }
    )

    gradient_accumulation_steps: Count = 1
    normalization: Literal["global", "micro_batch"] = "global"
    ckpt_frequency: WholeNumber = 1
    ckpt_epoch_frequency: Count = 1
    ckpt_steps: Count | None = None
    keep_last: Count | None = None
    log_dir: Text | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = None
    device: Device = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    logging_steps: Count = 10
    on_nonfinite: Literal["stop", "skip"] = "stop"
    shard_teacher: bool = False
    teacher_cache: Text | None = None
    teacher_cache_dtype: Literal["float16", "bfloat16"] | None = None
    teacher_cache_codec: CacheCodecComponent = None

    @model_validator(mode="after")
    def _log_dir_is_tensorboards(self) -> Self:
        if self.trackers is None or ("tensorboard" in self.trackers) == (self.log_dir is not None):
            return self
        if self.log_dir is None:
            raise ConfigError("tensorboard needs log_dir, the folder for its files").at("trackers")
        raise ConfigError("is for TensorBoard, which trackers leaves out. Name it there, or leave out log_dir").at(
            "log_dir"
        )

    @model_validator(mode="before")
    @classmethod
    def _fp16_is_a_precision(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "fp16" not in data:
            return data
        fp16 = data["fp16"]
        if not isinstance(fp16, bool):
            raise ConfigError(in_words({"type": "bool_type", "input": fp16})).at("fp16")
        rest = {key: value for key, value in data.items() if key != "fp16"}
        precision = rest.setdefault("precision", "fp16") if fp16 else rest.get("precision")
        if fp16 != (precision == "fp16"):
            raise ConfigError(f"is {str(fp16).lower()}, but precision is {shown(precision)}. Write precision alone").at(
                "fp16"
            )
        return rest


class TrainingConfig(LoopConfig):
    """How a distiller trains: TextBrewer's keys without those that apex and ``DataParallel`` took with them.

    ``output_dir`` is where checkpoints go (made by the run, not here); ``seed`` seeds the run where it is given.

    Raises: ``ConfigError`` with the path of each wrong value.
    """

    output_dir: Text = "./saved_models"
    seed: WholeNumber | None = None
