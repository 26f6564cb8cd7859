"""Check that a folder has the weights of the model that its config describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kdplug

_SHOWN = 3
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_NEW = 1 << 28
"""Maximum number of parameters in a new head."""
_SCALE = re.compile(r"(_scale|_scale_inv|\.SCB|absmax|zero_point)$")
"""Names of the scale factors of quantized weights."""


def check_weights(model: nn.Module, info: Mapping[str, Any], path: str, field: str, *, is_trained: bool) -> None:
    """Reject a model with random weights, unless these are its head and it will be trained.

    ``info`` is the loading info of ``from_pretrained``. If the model will not be trained, the folder must also not
    contain body weights that the model lacks: a model with a missing layer is a different model.

    Raises: ``ConfigError`` that names the first such weights.
    """
    there = {name: (list(theirs), list(own)) for name, theirs, own in info["mismatched_keys"]}
    absent = sorted({*info["missing_keys"], *there})
    if absent and is_trained:
        head = _head(model)
        absent = [name for name in absent if name not in head]
    if absent:
        is_head = not is_trained and not there and set(absent) <= _head(model)
        fix = (
            "Write teacher: {path: …, train: true} to train the teacher first"
            if is_head
            else "Its config.json and its weights belong to different models: save both again with save_pretrained"
        )
        named = [
            f"{name} {there[name][1]} (the file has {there[name][0]})" if name in there else name for name in absent
        ]
        raise kdplug.ConfigError(
            f"{path!r} has no weights for {_some(named)}, so its outputs would be random. {fix}", field=field
        )
    if info["error_msgs"]:
        raise kdplug.ConfigError(f"{path!r} cannot be loaded: {info['error_msgs'][0]}", field=field)
    if not is_trained and (more := _left_over(model, info["unexpected_keys"])):
        raise kdplug.ConfigError(
            f"{path!r} has weights that its {type(model).__name__} does not use: {_some(more)}. Without these weights it would be a "
            "different model. Correct config.json; or, if the weights are not needed, load the model with transformers and save it again",
            field=field,
        )


def check_sums(path: str, field: str) -> None:
    """Check the files of a folder against its ``SHA256SUMS``, if it has one; a recipe writes it next to its student.

    Raises: ``ConfigError`` that names the file that changed.
    """
    folder = Path(path)
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _SUM.fullmatch(line)
        if found is None:
            raise kdplug.ConfigError(
                f"{path!r} is damaged: SHA256SUMS has the line {line[:80]!r}, which is not a SHA-256 and a file name. Use an "
                "undamaged copy, or delete SHA256SUMS",
                field=field,
            )
        file = folder / found[2]
        if ".." in file.parts or file.suffix == ".md" or not file.is_file():  # a model card may be edited
            continue
        with file.open("rb") as stream:
            if file_digest(stream, "sha256").hexdigest() != found[1]:
                raise kdplug.ConfigError(
                    f"{path!r} is damaged: the SHA-256 of {found[2]} does not match SHA256SUMS. Use an undamaged copy; if you "
                    "changed the file, delete SHA256SUMS",
                    field=field,
                )


def check_complete(path: str, field: str) -> None:
    """Check that a folder that a recipe wrote has the files of its ``SHA256SUMS``, since its save may have been killed.

    In other folders, and for a model card, a missing file does not matter.

    Raises: ``ConfigError`` that names the missing file.
    """
    folder = Path(path)
    sums = folder / "SHA256SUMS"
    if not sums.is_file() or not (folder / "kdplug-run.json").is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _SUM.fullmatch(line)
        if found is None or ".." in (file := folder / found[2]).parts or file.suffix == ".md" or file.is_file():
            continue
        raise kdplug.ConfigError(
            f"{path!r} is incomplete: SHA256SUMS lists {found[2]}, which is missing. Resume the recipe that writes this "
            "folder, or use a complete copy",
            field=field,
        )


def check_size(model: nn.Module, path: str, field: str) -> None:
    """Compare the size of a model without weights with that of its weight files, before its memory is allocated.

    The files may be somewhat smaller than the model, since a head that is trained may be new.

    Raises: ``ConfigError`` if the files of a folder have far fewer numbers than the model.
    """
    folder = Path(path)
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if held and wanted > held + _NEW:  # a number takes at least one byte
        raise kdplug.ConfigError(
            f"the config.json of {path!r} describes a model of {wanted:,} parameters, but its safetensors files have only {held:,} "
            "bytes, less than one per parameter. Correct the sizes in config.json, or save the model again with save_pretrained",
            field=field,
        )


def unread_pickle(path: str, field: str, auto: str, error: Exception) -> kdplug.ConfigError | None:
    """Return an error that explains how to convert pickled weights; ``None`` if ``error`` has another cause."""
    folder = Path(path)
    if folder.is_dir():
        pickles = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        found, target, also = pickles[0] if pickles else "", path, ""
        if any((folder / f"model.safetensors{more}").is_file() for more in ("", ".index.json")):
            return None
    else:  # transformers' error mentions use_safetensors if a hub model has none
        found, target = "pytorch_model.bin" if "use_safetensors" in str(error) else "", f"./{path.rpartition('/')[2]}"
        also = f" Save the model's tokenizer or image processor there too, and replace {path} by {target}"
    if not found:
        return None
    return kdplug.ConfigError(
        f"{path!r} has its weights in {found}, a pickle. Reading a pickle can run code, so kdplug reads only safetensors. If you "
        f'trust the file, convert it: python -c "from transformers import {auto} as M; '
        f'M.from_pretrained({path!r}).save_pretrained({target!r})"{also}',
        field=field,
    )


def _head(model: Any) -> set[str]:
    """Return the names of weights not pretrained with the body: those outside it, the pooler, and rows for classes."""
    own = model.state_dict(keep_vars=True)
    body = model.base_model
    if body is model:
        output = model.get_output_embeddings()
        outside = {id(one) for one in (output.parameters() if output is not None else ())}
        found = {name for name, one in own.items() if id(one) in outside}
    else:
        inside = {id(one) for one in body.state_dict(keep_vars=True).values()}
        found = {name for name, one in own.items() if id(one) not in inside}
    found |= {name for name in own if "pooler" in name.split(".")}
    config = deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        other = type(model)(config).state_dict()
    return found | {name for name, one in own.items() if name in other and one.shape != other[name].shape}


def _left_over(model: Any, names: Iterable[str]) -> list[str]:
    """Return the body weights in ``names`` that the model lacks, except heads of other tasks and poolers."""
    prefix, body = model.base_model_prefix, model.base_model
    roots = {prefix, *(name for name, _ in body.named_children())}
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in body.named_modules()}

    def is_lacking(name: str) -> bool:
        parts = name.split(".")
        if parts[0] not in roots or "pooler" in parts:
            return False
        return name.rpartition(".")[0] not in modules or _SCALE.search(name) is not None

    return sorted(filter(is_lacking, names))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
