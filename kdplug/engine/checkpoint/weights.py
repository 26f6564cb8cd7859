"""Store and load weights. For frozen weights that have not changed, a checkpoint contains only digests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdplug.engine.checkpoint.archive import CHECKSUMS, check_file
from kdplug.engine.checkpoint.fingerprint import UNKNOWN, tensor_fingerprint
from kdplug.errors import RunError
from kdplug.host.bounded_json import json_value

STUDENT = "student.safetensors"
"""The file that holds a student's weights."""

TRAINABLE = "student_trainable.safetensors"
"""The file of a checkpoint that holds a student's weights, except frozen ones that are as at the start of the run.

Its metadata hold the digests of these, by name.
"""

_FROZEN = "frozen"


def load_student(student: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint, given its folder or file, into ``student``.

    Weights that were frozen are not in a checkpoint, unless the run changed them: ``student`` must hold them already,
    with the same values as at the start of the run.

    Raises: ``RunError`` if weights are incompatible, if a frozen one differs, or if the file does not match its
    checksum.
    """
    file = Path(path)
    file = student_file(file) if file.is_dir() else file
    check_file(file)
    check_frozen(student, _digests(file), file)
    frozen = read_weights(student, file, "student")
    check_frozen(student, frozen, file)  # a stored weight overwrites frozen ones that share its memory


def student_file(folder: Path) -> Path:
    """Return the file of a checkpoint that holds the student's weights, or that is missing and would hold them."""
    listed = folder / CHECKSUMS
    is_part = (folder / TRAINABLE).is_file() or (
        listed.is_file() and f'"{TRAINABLE}"' in listed.read_text(encoding="utf-8", errors="replace")
    )
    return folder / (TRAINABLE if is_part else STUDENT)


def frozen_weights(student: nn.Module) -> dict[str, str]:
    """Return a digest of each frozen parameter by its name in the state dict; of tied ones, under the first name."""
    student = uncompiled(student)
    frozen = {name for name, one in student.named_parameters(remove_duplicate=False) if not one.requires_grad}
    if not frozen:
        return {}
    held = {
        name: value for name, value in _untied(student.state_dict()).items() if name in frozen and not is_lazy(value)
    }
    found = {name: _digest(value) for name, value in held.items()}
    return {name: digest for name, digest in found.items() if digest != UNKNOWN}


def buffers_to_save(objective: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in the state dict of ``objective`` by name: each process has its own memory banks."""
    saved = uncompiled(objective).state_dict()
    return {name: buffer for name, buffer in uncompiled(objective).named_buffers() if name in saved}


def load_buffers(objective: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Overwrite the buffers of ``objective`` with those that another process than the main one has saved."""
    own = dict(uncompiled(objective).named_buffers())
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)


def gradients_required(student: nn.Module) -> dict[str, bool]:
    """Return ``requires_grad`` of each parameter by name."""
    return {name: one.requires_grad for name, one in uncompiled(student).named_parameters()}


def check_frozen(student: nn.Module, frozen: Mapping[str, str], file: Path) -> None:
    """Compare weights of ``student`` with the digests that ``read_weights`` returned.

    Raises: ``RunError`` that names the first one that differs.
    """
    own = uncompiled(student).state_dict()
    other = [name for name, value in own.items() if name in frozen and _digest(value) != frozen[name]]
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise RunError(
            f"the student's frozen weight {other[0]!r}{more} differs from that of the run that wrote {file}. The file "
            "contains only digests of frozen weights. Build the student as for that run: from the same pretrained weights, with the same seed"
        )


def write_student(student: nn.Module, folder: Path, frozen: Mapping[str, str]) -> None:
    """Write the student's weights to ``TRAINABLE`` without those whose digest is in ``frozen``; all to ``STUDENT``.

    Raises: ``RunError`` if its state dict holds anything other than tensors.
    """
    state = _untied(_state(student, "student"))
    same = {name: digest for name, digest in frozen.items() if name in state and _digest(state[name]) == digest}
    changed = {name: value for name, value in state.items() if name not in same}
    _write(changed, folder / (TRAINABLE if same else STUDENT), same)


def save_weights(module: nn.Module, file: Path, owner: str = "student") -> None:
    """Write a state dict of tensors. Tied tensors are stored once; others that share memory as separate copies.

    Raises: ``RunError`` if the state dict holds anything other than tensors.
    """
    _write(_untied(_state(module, owner)), file, {})


def read_weights(module: nn.Module, file: Path, owner: str) -> dict[str, str]:
    """Load the weights in ``file`` and return the digests of the frozen ones that it does not hold, unverified.

    Raises: ``RunError`` if they are incompatible.
    """
    module = uncompiled(module)
    try:
        stored, frozen = load_file(file), _read_frozen(file)
        own = module.state_dict()
        _check_names(frozen, own)
        stored |= {name: own[name] for name in frozen}
        twins = {_memory(value): stored[name] for name, value in own.items() if name in stored}
        tied = {name: twins.get(_memory(value)) for name, value in own.items() if name not in stored and _memory(value)}
        module.load_state_dict(stored | {name: value for name, value in tied.items() if value is not None})
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise RunError(
            f"{file} does not match the {owner}: {reason}. Construct the {owner} as in the run that wrote the file"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
    return frozen


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, whose weights have the user's own names."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def _digests(file: Path) -> dict[str, str]:
    try:
        return _read_frozen(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"cannot read {file}: {error}") from error


def _digest(value: Tensor) -> str:
    return tensor_fingerprint([("", value)])


def _state(module: nn.Module, owner: str) -> dict[str, Tensor]:
    found: dict[str, Any] = uncompiled(module).state_dict()
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise RunError(
                f"the {owner}'s state dict holds {name!r}, a {type(value).__name__}; only tensors can be saved"
            )
    return found


def _check_names(frozen: Mapping[str, str], own: Mapping[str, Tensor]) -> None:
    lacking = [name for name in frozen if name not in own]
    if lacking:
        raise RuntimeError(f"the file names a frozen weight {lacking[0]!r} that does not exist here")


def _read_frozen(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(_FROZEN, "{}")
    found = json_value(text)
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        raise ValueError("its digests of frozen weights are not a mapping of names to text")
    return found


def _write(tensors: Mapping[str, Tensor], file: Path, frozen: Mapping[str, str]) -> None:
    stored: dict[str, Tensor] = {}
    memories: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if memory in memories else tensor
        memories.add(memory)
    save_file(stored, file, {_FROZEN: json.dumps(frozen)} if frozen else None)


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without those that are identical to one with an earlier name."""
    found: dict[Any, str] = {}
    for name in sorted(tensors):
        found.setdefault(_memory(tensors[name]) or name, name)
    return {name: tensors[name] for name in found.values()}


def _memory(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return a key that is equal only for identical tensors; ``None`` for a tensor without memory."""
    pointer = 0 if is_lazy(tensor) else tensor.data_ptr()
    return (pointer, tensor.device, tensor.dtype, tensor.shape, tensor.stride()) if pointer else None
