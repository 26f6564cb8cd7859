"""What the kept outputs are of: teachers, adaptors, data and precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdplug.engine.absence import Absent
from kdplug.engine.cache_digest import code_digest, text_digest
from kdplug.engine.teacher import Teacher

_SHOWN = 3


OF_THE_MODEL = ("weights", "architecture")
"""What nobody can say of a teacher that is not there."""


def teacher_fingerprint(teachers: Mapping[str, Teacher | Absent]) -> dict[str, Any]:
    """Digests of each teacher's weights and buffers by name, of how it is built, and of its adaptor; plain data."""
    adaptors = {key: _adaptor(teacher.adaptor) for key, teacher in teachers.items()}
    if any(isinstance(teacher, Absent) for teacher in teachers.values()):
        return {"adaptor": adaptors}
    return {
        "weights": {key: _weights(teacher.model) for key, teacher in teachers.items()},
        "architecture": {key: text_digest(_architecture(teacher.model)) for key, teacher in teachers.items()},
        "adaptor": adaptors,
    }


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each part of two fingerprints that differs, most of them without the digests, which tell nobody anything."""
    found = []
    for part in dict.fromkeys([*saved, *now]):
        before, after = saved.get(part), now.get(part)
        if before != after:
            found.append(f"{_WORDS.get(part, part)}: {_change(before, after)}")
    return found


_WORDS = {
    "weights": "the teacher's weights",
    "architecture": "the teacher's architecture",
    "adaptor": "the teacher's adaptor",
    "inputs": "the data, as the teacher is given them",
    "examples": "the number of examples",
    "model_args": "the model_args",
    "precision": "the precision of the forward pass",
    "dtype": "the dtype in which outputs are kept",
    "codec": "how logits are kept",
    "temperature": "the temperature of what is kept",
    "task": "the task",
    "teacher": "the teacher",
    "fit": "how the teacher is fitted",
    "fitted_on": "what the teacher is fitted on",
    "classes": "the classes",
    "problem": "what is asked of the teacher",
    "tokenizer": "the tokenizer",
    "alignment": "which logits belong to which token",
}


def _change(before: Any, after: Any) -> str:
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return "changed" if _is_digest(before) and _is_digest(after) else f"{before!r} -> {after!r}"
    leaves, others = _leaves(before), _leaves(after)
    names = [name for name in dict.fromkeys([*leaves, *others]) if leaves.get(name) != others.get(name)]
    told = [_leaf(name, leaves.get(name), others.get(name)) for name in names]
    shown = ", ".join(filter(None, told[:_SHOWN])) or "changed"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _leaf(name: str, before: Any, after: Any) -> str:
    return name if _is_digest(before) or _is_digest(after) else f"{name} {before!r} -> {after!r}"


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = f"{path}.{key}".strip(".")
        found |= _leaves(value, inner) if isinstance(value, Mapping) else {inner: value}
    return found


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16


def _weights(model: nn.Module) -> dict[str, str]:
    return {name: text_digest(value) for name, value in model.state_dict(keep_vars=True).items()}


def _architecture(model: nn.Module) -> list[str]:
    return [type(model).__qualname__, repr(model)]


def _adaptor(adaptor: Any) -> str | None:
    return None if adaptor is None else code_digest(adaptor)
