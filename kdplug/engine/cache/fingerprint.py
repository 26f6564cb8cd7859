"""Fingerprints of the teachers and adaptors of a teacher cache, and the differences between two caches' fingerprints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kdplug.contracts.tree import dotted, leaves
from kdplug.engine.external_teacher import CalledTeacher
from kdplug.engine.hashing import code_digest, held_functions, printed, text_digest
from kdplug.engine.self_teacher import SelfTeacher
from kdplug.engine.teacher import CacheOnlyTeacher, Teacher
from kdplug.objective.capture.hooks import Capture

_SHOWN = 3

OneTeacher = Teacher | CacheOnlyTeacher | CalledTeacher | SelfTeacher


OF_THE_MODEL = ("weights", "architecture", "hooks", "external")
"""The parts of a fingerprint that need the teacher's model."""


_KINDS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
_OF_ALL = {key: getattr(torch.nn.modules.module, f"_global{key}") for key in _KINDS}


def teacher_fingerprint(teachers: Mapping[str, OneTeacher]) -> dict[str, Any]:
    """Return digests of each teacher's weights and buffers, architecture, forward hooks and adaptor.

    The result is plain data. An external teacher has its own fingerprint instead. The weights of a student without its
    adapters are those that are not trained. ``hooks`` is present only if a teacher has some; kdplug's own capture hooks are not
    included.
    """
    adaptors = {key: _adaptor(teacher.adaptor) for key, teacher in teachers.items()}
    if any(isinstance(teacher, CacheOnlyTeacher) for teacher in teachers.values()):
        return {"adaptor": adaptors}
    external = {key: teacher.fingerprint() for key, teacher in teachers.items() if isinstance(teacher, CalledTeacher)}
    if external:
        return {"external": external, "adaptor": adaptors}
    selves = {key: teacher for key, teacher in teachers.items() if isinstance(teacher, SelfTeacher)}
    if selves:
        kept = {key: {n: text_digest(one) for n, one in own.frozen_tensors().items()} for key, own in selves.items()}
        return {
            "weights": kept,
            "architecture": {key: _architecture(own.student) for key, own in selves.items()},
            "adaptor": adaptors,
        }
    hooks = {key: found for key, teacher in teachers.items() if (found := _hooks(teacher.model))}
    return {
        "weights": {key: _weights(teacher.model) for key, teacher in teachers.items()},
        "architecture": {key: _architecture(teacher.model) for key, teacher in teachers.items()},
        **({"hooks": hooks} if hooks else {}),
        "adaptor": adaptors,
    }


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each part in which two fingerprints differ; most digests are omitted as uninformative."""
    found = []
    for part in dict.fromkeys([*saved, *now]):
        missing: dict[str, Any] | None = {} if part == "hooks" else None
        before, after = saved.get(part, missing), now.get(part, missing)
        if before != after:
            if part == "precision":  # accelerate's name for the config's fp32
                before, after = ("fp32" if value == "no" else value for value in (before, after))
            found.append(f"{_WORDS.get(part, part)}: {_change(before, after)}")
    return found


_WORDS = {
    "external": "the external teacher's fingerprint",
    "weights": "the teacher's weights",
    "architecture": "the teacher's architecture",
    "hooks": "the hooks on the teacher",
    "adaptor": "the teacher's adaptor",
    "inputs": "the data that the teacher receives",
    "examples": "the number of examples",
    "model_args": "the model_args",
    "precision": "the precision of the forward pass",
    "dtype": "the dtype of stored outputs",
    "codec": "the codec of stored logits",
    "temperature": "the temperature of stored logits",
    "task": "the task",
    "teacher": "the teacher",
    "fit": "how the teacher is trained",
    "fitted_on": "the teacher's training data",
    "classes": "the classes",
    "problem": "the teacher's problem type",
    "tokenizer": "the tokenizer",
    "alignment": "which logits belong to which token",
}


def _change(before: Any, after: Any) -> str:
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return "changed" if _is_digest(before) and _is_digest(after) else f"{before!r} -> {after!r}"
    was, now = ({dotted(path): value for path, value in leaves(part, _is_value)} for part in (before, after))
    names = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    changed = [_leaf(name, was.get(name), now.get(name)) for name in names]
    shown = ", ".join(filter(None, changed[:_SHOWN])) or "changed"
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _leaf(name: str, before: Any, after: Any) -> str:
    if not _is_digest(before) and not _is_digest(after):
        return f"{name} {before!r} -> {after!r}"
    return f"{name} (new)" if before is None else f"{name} (removed)" if after is None else name


def _is_value(part: Any) -> bool:
    return not isinstance(part, Mapping)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16


def _weights(model: nn.Module) -> dict[str, str]:
    tensors = dict(model.named_buffers())  # includes non-persistent buffers
    tensors |= model.state_dict(keep_vars=True)
    return {name: text_digest(value) for name, value in tensors.items()}


def _hooks(model: nn.Module) -> dict[str, str]:
    """Return digests of everything that changes the model's outputs without being part of it, by place and name.

    This covers forward hooks and pre-hooks of torch and accelerate, and a replaced ``forward``.
    """
    found: dict[str, str] = {}
    for place, kind, hook in _hooked(model):
        name = f"{place}, {kind} {getattr(hook, '__qualname__', type(hook).__qualname__)}"
        while name in found:
            name += "'"
        found[name] = code_digest(hook, model)
    return found


def _hooked(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    modules = [
        ("every module", _OF_ALL),
        *((path or type(model).__name__, vars(one)) for path, one in model.named_modules()),
    ]
    for place, held in modules:
        for attribute, kind in _KINDS.items():
            for hook in held.get(attribute, {}).values():
                if getattr(hook, "__module__", None) != Capture.__module__:
                    yield place, kind, hook
        if "_hf_hook" in held:  # accelerate's own hooks only move tensors between devices
            if not type(held["_hf_hook"]).__module__.startswith("accelerate."):
                yield place, "accelerate hook", held["_hf_hook"]
        elif "forward" in held and "_orig_mod" not in held.get("_modules", {}):  # torch.compile replaces it too
            yield place, "replaced", held["forward"]


def _architecture(model: nn.Module) -> str:
    functions = {path: code_digest(function) for path, function in held_functions(model)}
    return text_digest([*printed(model), *([functions] if functions else [])])


def _adaptor(adaptor: Any) -> str | None:
    return None if adaptor is None else code_digest(adaptor)
