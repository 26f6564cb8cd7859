"""Settings of a training run that do not belong to the objective."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from kdplug.config.key import KeyFacts
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


Device = Annotated[str, Field(pattern=f"^({_DEVICE})$"), BeforeValidator(_read_device)]


def _expand(path: str) -> str:
    """Return ``path`` with the home folder for a leading ``~``.

    Raises: ``ConfigError`` for a variable, or for the ``~`` of an unknown user.
    """
    if re.search(r"\$\{|(^|/)\$\w", path):
        raise ConfigError(f"must be a folder, got {shown(path)}: variables are not expanded. Write the full path")
    found = os.path.expanduser(path)  # noqa: PTH111  Path drops a leading ./ from other paths
    if found.startswith("~"):
        raise ConfigError(
            f"must be a folder, got {shown(path)}: there is no such user. Write the full path, or start with ./"
        )
    return found


Folder = Annotated[Text, AfterValidator(_expand)]
"""The path of a folder. A leading ``~`` means the home folder; variables raise an error."""


_FREE = KeyFacts(identity=False)
"""Marker of keys whose values may differ when a run is resumed."""

_CACHED = KeyFacts(needs="is_caching_logits")


def _fp16_too(schema: dict[str, Any]) -> None:
    """Add the key ``fp16``, which ``_fp16_is_a_precision`` reads."""
    schema["properties"]["fp16"] = {"type": "boolean", "description": "TextBrewer's spelling of `precision: fp16`"}


class LoopConfig(ConfigModel):
    """Keys shared by ``TrainingConfig`` and the ``training`` of a recipe. ``fp16: true`` means ``precision: fp16``."""

    model_config = ConfigDict(json_schema_extra=_fp16_too)

    retired: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "fp16_opt_level": "belonged to apex and was removed. Write precision: fp16 or precision: bf16",
            "data_parallel": "was removed. For several devices, start the script with 'accelerate launch'",
            "local_rank": "was removed. For several devices, start the script with 'accelerate launch', which sets "
            "the rank",
        }
    )

    gradient_accumulation_steps: Count = Field(
        default=1,
        description="micro-batches per optimizer step; those left over at the end of an epoch also form a step",
    )
    normalization: Literal["global", "micro_batch"] = Field(
        default="global",
        description="batch over which losses are averaged: the `global` batch of all micro-batches and processes, or each "
        "`micro_batch` (faster if masks differ between micro-batches, but gives a different gradient)",
    )
    ckpt_frequency: Annotated[WholeNumber, _FREE] = Field(
        default=1,
        description="number of checkpoints per epoch; 0 writes none, except the one at the end of each training run of a recipe",
    )
    ckpt_epoch_frequency: Annotated[Count, _FREE] = Field(
        default=1, description="write checkpoints only in every n-th epoch"
    )
    ckpt_steps: Annotated[Count | None, _FREE] = Field(
        default=None, description="optimizer steps between checkpoints, for runs whose length is set by `num_steps`"
    )
    keep_last: Annotated[Count | None, _FREE] = Field(
        default=2,
        description="number of most recent checkpoints to keep, in addition to the best one of an evaluation; none keeps all",
    )
    log_dir: Annotated[Folder | None, _FREE] = Field(
        default=None,
        description="folder for TensorBoard logs, which need the extra `tensorboard`; none writes no TensorBoard logs",
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None, _FREE] = Field(
        default=None,
        description="trackers that losses are logged to in addition to `log.jsonl`: a list of `tensorboard`, `wandb` and "
        "`mlflow`, each of which needs the extra of that name; none means TensorBoard if `log_dir` is set",
    )
    device: Annotated[Device, _FREE] = Field(
        default="auto",
        description="device to train on: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; leave it at `auto` under "
        "`accelerate launch`",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="precision of the forward passes; losses are always computed in float32"
    )
    logging_steps: Annotated[Count, _FREE] = Field(
        default=10, description="number of optimizer steps between two log entries"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="on a loss or gradient that is not finite, `stop` the run with an error or `skip` the step",
    )
    shard_teacher: Annotated[bool, _FREE] = Field(
        default=False, description="also shard the frozen teacher across processes; needs FSDP2"
    )
    teacher_cache: Annotated[Folder | None, KeyFacts(identity=False, needs="is_caching_logits")] = Field(
        default=None,
        description="folder for the teacher outputs that `is_caching_logits` stores; none keeps them in memory",
    )
    teacher_cache_dtype: Annotated[Literal["float16", "bfloat16"] | None, _CACHED] = Field(
        default=None,
        description="dtype in which teacher outputs are cached: `float16` or `bfloat16`; none keeps the teacher's dtype",
    )
    teacher_cache_codec: Annotated[CacheCodecComponent, _CACHED] = Field(
        default=None,
        description="encoding of the cached logits, such as `{name: topk_tail, k: 64}`; none stores them unchanged",
    )

    @model_validator(mode="after")
    def _log_dir_is_tensorboards(self) -> Self:
        if self.trackers is None or ("tensorboard" in self.trackers) == (self.log_dir is not None):
            return self
        if self.log_dir is None:
            raise ConfigError("tensorboard needs a folder for its files. Set log_dir").at("trackers")
        raise ConfigError(
            "is for TensorBoard, which trackers does not list. Add tensorboard to trackers, or leave out log_dir"
        ).at("log_dir")

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
            raise ConfigError(f"is {str(fp16).lower()}, but precision is {shown(precision)}. Leave out fp16").at("fp16")
        return rest


class TrainingConfig(LoopConfig):
    """Settings of a distiller's run, among them TextBrewer's, without ``fp16_opt_level``, ``data_parallel``, ``local_rank``.

    Raises: ``ConfigError`` with the path of each wrong value.
    """

    output_dir: Annotated[Folder, _FREE] = Field(
        default="./saved_models", description="folder for checkpoints; created by the run, not by the config"
    )
    seed: WholeNumber | None = Field(
        default=None, description="seed of the run; none leaves the generators as they are"
    )
