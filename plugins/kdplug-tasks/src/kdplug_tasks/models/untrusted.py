"""Read model folders as data. Reject content that would run code, download code, or build an unbounded model."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kdplug

_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_TORCH_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_MOST = (
    (re.compile(r"(^|_)(layers?|depths?|blocks)(_per_stage)?$|^(n|num)_.*(layers|blocks|stages)"), 1 << 12, "layers"),
    (re.compile(r"experts$"), 1 << 16, "experts"),
    (re.compile(r"labels$"), 1 << 20, "labels"),
)
"""Keys that count parts of a model that are built one by one, with the maximum count."""
_TOKENIZERS = ("Tokenizer", "TokenizerFast", "Backend")
_IMAGE_PROCESSORS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")


@contextmanager
def data_only() -> Iterator[None]:
    """Keep transformers from running code of a folder, prompting to do so, and converting weights on the hub.

    ``trust_remote_code=False`` does the first for one call. Classes that load a nested model, config or tokenizer do
    not pass it on and would prompt at the terminal. A conversion would load the weights from a pull request.
    """
    from transformers import dynamic_module_utils

    timeout, switch = dynamic_module_utils.TIME_OUT_REMOTE_CODE, os.environ.get(_NO_CONVERSION)
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer; with 0, transformers raises
    os.environ[_NO_CONVERSION] = "1"
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = timeout
        os.environ.pop(_NO_CONVERSION)
        if switch is not None:
            os.environ[_NO_CONVERSION] = switch


def read_settings(path: str, field: str) -> None:
    """Check the ``config.json`` of a folder or hub name before a config is built from it.

    Raises: ``ConfigError`` for an adapter, and for settings that ``check_settings`` rejects; ``OSError`` if there is
    none.
    """
    from transformers import PreTrainedConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(path) is not None:
        raise kdplug.ConfigError(
            f"{path!r} is or contains a PEFT adapter. Merge it into its model first: "
            "PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…)",
            field=field,
        )
    settings, _ = PreTrainedConfig.get_config_dict(path)
    check_settings(settings, f"{path!r}: its config.json", field)


def check_settings(settings: Any, owner: str, field: str) -> None:
    """Reject config settings, at any depth, that name a hub kernel, another loader or a pickle.

    Also reject numbers with which a model cannot run, or cannot be built in reasonable time.

    ``owner`` begins the message. Raises: ``ConfigError``.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if (refusal := _refusal(key, value, owner, field)) is not None:
                raise refusal
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if (wrong := _flaw_of_number(str(key), number)) is not None:
                    raise kdplug.ConfigError(f"{owner} has {key} {number!r}: {wrong}", field=field)
            check_settings(value, owner, field)
    elif isinstance(settings, (list, tuple)):
        for one in settings:
            check_settings(one, owner, field)


def forget_code(config: Any) -> Any:
    """Remove references to code from a config and nested configs, so that models built or saved with it have none."""
    from transformers import PreTrainedConfig

    vars(config).pop("auto_map", None)
    for inner in vars(config).values():
        if isinstance(inner, PreTrainedConfig):
            forget_code(inner)
    return config


def check_shards(path: str, field: str) -> None:
    """Raise ``ConfigError`` if the index of a folder's safetensors lists other files."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(path, SAFE_WEIGHTS_INDEX_NAME)
        if file is None:
            return
    except OSError:  # no index
        return
    try:
        names = sorted(set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise kdplug.ConfigError(
            f"{path!r}: its {SAFE_WEIGHTS_INDEX_NAME} is damaged: {error!r}. Use an undamaged copy", field=field
        ) from error
    for name in names:
        if not name.endswith(".safetensors"):
            raise kdplug.ConfigError(
                f"{path!r}: its {SAFE_WEIGHTS_INDEX_NAME} lists {name!r}, but kdplug reads weights only from safetensors. Save the "
                "model again with save_pretrained",
                field=field,
            )


def check_tokenizer_class(path: str, field: str) -> None:
    """Raise ``ConfigError`` if a folder's ``tokenizer_class`` is not a tokenizer: transformers loads any class."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    _check_class(get_tokenizer_config(path), "tokenizer_class", _TOKENIZERS, path, field)
    with suppress(OSError):  # a folder with only a tokenizer
        _check_class(PreTrainedConfig.get_config_dict(path)[0], "tokenizer_class", _TOKENIZERS, path, field)


def check_image_processor_class(path: str, field: str) -> None:
    """Raise ``ConfigError`` if a folder's ``image_processor_type`` is not an image processor.

    Transformers would load any class.
    """
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    settings = get_image_processor_config(path)
    for key in ("image_processor_type", "feature_extractor_type"):
        _check_class(settings, key, _IMAGE_PROCESSORS, path, field)


def _check_class(settings: Mapping[str, Any], key: str, endings: tuple[str, ...], path: str, field: str) -> None:
    name = settings.get(key)
    if name is not None and (not str(name).endswith(endings) or str(name).startswith("Auto")):
        what = key.removesuffix("_class").removesuffix("_type").replace("_", " ")
        raise kdplug.ConfigError(f"{path!r}: its {key} is {name!r}, which is not a valid {what}", field=field)


def _refusal(key: str, value: Any, owner: str, field: str) -> kdplug.ConfigError | None:
    match key:
        case "_attn_implementation" | "attn_implementation":
            # Names without a slash are built into transformers, and kdplug chooses among them itself.
            names = [one for one in _texts(value) if "/" in one]
            return _no_kernel(key, names[0], owner, field) if names else None
        case "_experts_implementation" | "experts_implementation":
            names = [one for one in _texts(value) if one not in _TORCH_EXPERTS]
            return _no_kernel(key, names[0], owner, field) if names else None
        case "quantization_config" if value:
            return kdplug.ConfigError(
                f"{owner} declares quantized weights. kdplug does not load them, since this needs another package and often "
                "downloaded kernels. Use the model before quantization, or save the result of model.dequantize()",
                field=field,
            )
        case "transformers_weights" if value is not None and not str(value).endswith(".safetensors"):
            return kdplug.ConfigError(
                f"{owner} names {value!r} as its weights, but kdplug reads weights only from safetensors. Save the weights as "
                "model.safetensors and remove transformers_weights",
                field=field,
            )
        case "checkpoint_path" if value:  # among the model_args of timm
            return kdplug.ConfigError(
                f"{owner} has the checkpoint_path {value!r}, which timm would unpickle. Remove checkpoint_path",
                field=field,
            )
    return None


def _flaw_of_number(key: str, value: Any) -> str | None:
    """Return why a number is not valid for a setting; ``None`` if it is, or if the value is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if math.isnan(value):
        return "it must be a number, not NaN"
    if "drop" in key and not 0 <= value <= 1:
        return "a dropout must be in [0, 1]"
    for counted, most, parts in _MOST:
        if counted.search(key) and value > most:
            return f"kdplug builds models of at most {most:,} {parts}"
    if key == "chunk_size_feed_forward" and value not in (0, 1):
        return f"the chunk size would have to divide the length of every batch. Set {key} to 0"
    return None


def _no_kernel(key: str, name: str, owner: str, field: str) -> kdplug.ConfigError:
    return kdplug.ConfigError(
        f"{owner} names the kernel {name!r} in {key}, which is code from the hub. Remove {key}: kdplug uses torch's implementation",
        field=field,
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
