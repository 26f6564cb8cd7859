"""The identity of a run, which is compared between processes and with the checkpoint that a run resumes from."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kdplug.engine.checkpoint.fingerprint import (
    CONTENT,
    HELD,
    SHOWN_AS,
    UNKNOWN,
    code_fingerprint,
    data_fingerprint,
    described,
    tensor_fingerprint,
)
from kdplug.engine.external_teacher import CalledTeacher
from kdplug.engine.hashing import held_functions, printed, text_digest
from kdplug.engine.multi_task import TaskAdaptor, TaskTeachers
from kdplug.engine.optimizer import unwrap
from kdplug.engine.run import Request
from kdplug.engine.self_teacher import SelfTeacher
from kdplug.engine.teacher import CacheOnlyTeacher, Ensemble
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError
from kdplug.objective.objective import Objective

_MISSING = object()
_HELD_NOTE = " (closure, default arguments, globals or helper functions)"
_DOCS = "https://github.com/kdplug/kdplug/blob/main/docs/how-to/plan-a-run.md#how-data-and-teacher-are-compared"
_LINES = 20
_WIDTH = 120
_DIGEST = re.compile(r"[0-9a-f]{8}|[0-9a-f]{16}")

FINGERPRINTS = ("data", "teacher", "teacher_cache", "student")
"""The parts of an identity that are digests and shapes, which trackers do not need."""


def run_identity(pair: TrainingModule, teacher: Any, request: Request) -> dict[str, Any]:
    """Return ``request.identity`` and fingerprints of everything else that affects the result of a run, as plain data.

    Call it before anything is wrapped or sharded, and before cached teachers and data replace the originals.
    """
    return {
        **request.identity,
        "data": {
            **data_fingerprint(request.dataloader),
            "batch_postprocessor": code_fingerprint(request.batch_postprocessor),
        },
        **sides_identity(pair.student, pair.adaptor, pair.objective, teacher),
        "model_args": described(request.model_args),
        "optimizer": _optimizer(request, pair.student, pair.objective),
    }


def sides_identity(student: nn.Module, adaptor: Any, objective: nn.Module, teacher: Any) -> dict[str, Any]:
    """Return fingerprints of the teachers, the student's shapes, and the code of adaptors and matches."""
    return {
        **({} if teacher is None else {"teacher": teacher_identity(teacher)}),
        "student": {
            "adaptor": _adaptor(adaptor),
            "architecture": _architecture(student),
            "functions": _functions(student),
            "parameters": _structure(student),
        },
        "custom_matches": _custom_matches(objective),
    }


def teacher_identity(side: Any) -> dict[str, Any]:
    """Return fingerprints of weights, architecture and adaptor of a teacher, or of several by key or task."""
    if isinstance(side, (Ensemble, TaskTeachers)):
        return {key: teacher_identity(one) for key, one in side.teachers.items()}
    if isinstance(side, CacheOnlyTeacher):
        return {"weights": UNKNOWN, "architecture": UNKNOWN, "functions": UNKNOWN, "adaptor": _adaptor(side.adaptor)}
    if isinstance(side, CalledTeacher):
        return {"external": side.fingerprint()}
    if isinstance(side, SelfTeacher):  # a checkpoint has digests of the frozen weights of the student
        return {"self": True, "adaptor": _adaptor(side.adaptor)}
    return {**model_identity(side.model), "adaptor": _adaptor(side.adaptor)}


def model_identity(model: nn.Module) -> dict[str, Any]:
    """Return digests of a model's weights, of its architecture, and of the functions that its modules hold."""
    return {
        "weights": tensor_fingerprint(model.state_dict(keep_vars=True).items()),
        "architecture": _architecture(model),
        "functions": _functions(model),
    }


def _architecture(model: nn.Module) -> str:
    """Return a digest of the model's repr, which includes settings such as dropout, and of the shapes in it."""
    return text_digest([printed(model), _shapes(model)])


def _functions(model: nn.Module) -> dict[str, Any]:
    return {name: code_fingerprint(one) for name, one in held_functions(model)}


def _structure(model: nn.Module) -> dict[str, str]:
    """Return dtype and shape of each parameter and buffer by name, and whether it is frozen."""
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {name: f"{shape} frozen" if name in frozen else shape for name, shape in _shapes(model).items()}


def _shapes(model: nn.Module) -> dict[str, str]:
    return {name: _shape(value) for name, value in (*model.named_parameters(), *model.named_buffers())}


class Difference(NamedTuple):
    """A path at which two identities differ, and the value of each."""

    path: str
    first: Any
    second: Any

    @property
    def is_digest(self) -> bool:
        """True if both values are digests, which are not worth showing. A version may look like one, but is not."""
        is_version = self.path.partition(".")[0] in ("kdplug", "torch", "plugins")
        return not is_version and all(
            isinstance(value, str) and _DIGEST.fullmatch(value) for value in (self.first, self.second)
        )


def differences(first: Any, second: Any, path: str = "") -> Iterator[Difference]:
    """Yield each difference between two trees of plain data. Values unknown in one of them are skipped.

    A key ``shown_as`` is not compared. Its text is added to the paths of differences in the same mapping.
    """
    if UNKNOWN in (first, second):
        return
    if _is_callable(first) or _is_callable(second):
        yield from _other_callable(first, second, path)
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        yield from _other_mapping(first, second, path)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, other, f"{path}.{place}")
    elif first != second:
        yield Difference(path, first, second)


def check_identity(saved: Any, now: Any, folder: object) -> None:
    """Raise a ``RunError`` that lists every difference between the run that wrote a checkpoint and this one."""
    found = list(differences(saved, now))
    if found:
        parts = ", ".join(dict.fromkeys(one.path.partition(".")[0] for one in found))
        lines = [
            f"{one.path}: {'changed' if one.is_digest else f'{_shown(one.first)} -> {_shown(one.second)}'}"
            for one in found
        ]
        raise RunError(
            f"{folder} was written by a run with different inputs; changed since: {parts}. Differences (checkpoint -> now):\n    "
            + "\n    ".join(_shortened(lines))
            + "\nUndo the change, or resume anyway with resume_changed=True (--resume-changed). What is compared: "
            + _DOCS
        )


def check_ranks(identity: Mapping[str, Any], num_processes: int) -> dict[str, Any]:
    """Compare the identities of all processes and return that of rank 0. Every process must call it.

    It needs one collective operation, or none in a single process. Values that callables hold are not compared: a
    function may depend on its rank.

    Raises: on every process the same ``RunError``, which names the rank, the field and both values.
    """
    if num_processes == 1:
        return dict(identity)
    every: list[Any] = [None] * num_processes
    own = {"python": ".".join(platform.python_version_tuple()[:2]), **identity}
    torch.distributed.all_gather_object(every, own)
    lines = [
        f"rank {rank}: {one.path}: {_shown(one.second)}, on rank 0 {_shown(one.first)}"
        for rank, other in enumerate(every)
        for one in differences(every[0], other)
        if not one.path.endswith(_HELD_NOTE)
    ]
    if lines:
        raise RunError(
            "the processes were started with different inputs. Differences from rank 0:\n    "
            + "\n    ".join(_shortened(lines))
            + "\nStart every process with the same code, config, packages and files"
        )
    return {key: value for key, value in every[0].items() if key in identity}


def _is_callable(value: Any) -> bool:
    return isinstance(value, Mapping) and HELD in value


def _other_callable(first: Any, second: Any, path: str) -> Iterator[Difference]:
    """Compare two results of ``code_fingerprint``. If the code differs, its values are not compared."""
    codes = [one["code"] if _is_callable(one) else one for one in (first, second)]
    if codes[0] != codes[1]:
        yield Difference(path, *codes)
    elif _is_callable(first) and _is_callable(second):
        yield from differences(first[HELD], second[HELD], f"{path}{_HELD_NOTE}")


def _other_mapping(first: Mapping[str, Any], second: Mapping[str, Any], path: str) -> Iterator[Difference]:
    if path.rpartition(".")[2] == CONTENT:
        yield from _other_examples(first, second, path)
        return
    origin = f" of {second[SHOWN_AS]}" if isinstance(second.get(SHOWN_AS), str) else ""
    for key in [*first, *(key for key in second if key not in first)]:
        if key != SHOWN_AS:
            inner = ".".join(filter(None, (path, str(key))))
            for one in differences(first.get(key, _MISSING), second.get(key, _MISSING), inner):
                yield one._replace(path=f"{one.path}{origin}")


def _other_examples(first: Mapping[str, Any], second: Mapping[str, Any], path: str) -> Iterator[Difference]:
    """Compare two fingerprints of examples at the largest number of examples that both runs read."""
    for count in [count for count in first if count in second][-1:]:
        if first[count] != second[count]:
            yield Difference(f"{path} ({int(count):,} examples compared)", first[count], second[count])


def _adaptor(adaptor: Any) -> Any:
    if isinstance(adaptor, TaskAdaptor):
        return {task: code_fingerprint(one) for task, one in adaptor.adaptors.items()}
    return code_fingerprint(adaptor)


def _shape(value: Any) -> str:
    if is_lazy(value):
        return "without a shape yet"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _custom_matches(objective: Any) -> list[dict[str, Any]]:
    matches: Any = objective.custom_matches if isinstance(objective, Objective) else ()
    return [
        {
            "name": match.name,
            "weight": match.weight,
            "layers": [match.layer_teacher, match.layer_student],
            "loss": code_fingerprint(match.loss),
            "projection": code_fingerprint(match.projection),
        }
        for match in matches
    ]


def _optimizer(request: Request, student: nn.Module, objective: nn.Module) -> dict[str, Any]:
    """Return classes and settings of optimizer, schedule and clipping; the objective's config determines its groups."""
    optimizer, own = unwrap(request.optimizer), {id(parameter) for parameter in objective.parameters()}
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        trained = [names.get(id(parameter), UNKNOWN) for parameter in group["params"] if id(parameter) not in own]
        if trained:
            settings = {name: described(value) for name, value in group.items() if name not in ("params", "initial_lr")}
            settings["lr"] = described(group.get("initial_lr", group.get("lr")))  # a schedule may have changed it
            groups.append({"parameters": len(trained), "names": text_digest(trained), **settings})
    return {
        "kind": type(optimizer).__qualname__,
        "groups": groups,
        "scheduler": described(request.scheduler_class)
        if request.scheduler is None
        else type(request.scheduler).__qualname__,
        "scheduler_args": described(request.scheduler_args),
        "max_grad_norm": request.max_grad_norm,
    }


def _shown(value: Any) -> str:
    text = "(missing)" if value is _MISSING else repr(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _LINES
    return lines if more <= 0 else [*lines[:_LINES], f"and {more} more"]
