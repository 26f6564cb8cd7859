"""Move a teacher's tensors towards the student's after each optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.host import registry
from kdplug.objective.capture.path import WRAPPERS
from kdplug.objective.schedule import checked_progress
from kdplug.objective.teacher import UPDATES

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.host.component import Component

_FIELD = "teacher_update"
_SHOWN = 8


def build_teacher_update(config: DistillationConfig) -> Component | None:
    """Return the teacher update that a config names, with its settings; ``None`` if it names none.

    Raises: ``EntryError``, ``SettingError``, ``SignatureError`` with the path of the key.
    """
    if config.teacher_update is None:
        return None
    try:
        component = registry.teacher_updates.build(config.teacher_update)
        if isinstance(component.target, nn.Module) and component.target.state_dict():
            raise SignatureError(
                f"{component.entry.qualified} is a module with parameters or buffers, which would not be saved. A teacher "
                "update is a function of both tensors and of the progress of the run"
            )
    except KdplugError as error:
        raise error.at(_FIELD) from error.__cause__
    return component


class TeacherUpdate:
    """Calls a config's teacher update on each parameter of ``teacher``, with the student's parameter of the same name.

    Buffers, such as the statistics of batch norm, are copied from the student: the teacher runs in eval mode, so its own
    never change. ``torch.optim.swa_utils.AveragedModel`` and timm's ``ModelEmaV3`` copy them by default too. Parameters
    that both models share are left alone. In your own loop, call ``update`` after each optimizer step.

    Raises: ``ConfigError`` that lists the differences if the models do not have the same parameters and buffers; the errors
    of a wrong entry or setting.
    """

    def __init__(self, config: DistillationConfig, teacher: nn.Module, student: nn.Module) -> None:
        component = build_teacher_update(config)
        if component is None:
            raise ConfigError("is none. Name an entry, such as {name: ema, decay: 0.999}", field=_FIELD)
        ours, theirs = dict(_tensors(student)), dict(_tensors(teacher))
        _check_same(theirs, ours)
        pairs = [(name, one, ours[name]) for name, one in theirs.items() if not _is_shared(one, ours[name])]
        self._parameters = [pair for pair in pairs if isinstance(pair[1], nn.Parameter)]
        self._buffers = [pair for pair in pairs if not isinstance(pair[1], nn.Parameter)]
        self._teacher = teacher
        self._target: Any = component.target
        self._inputs = component.inputs
        self._owner = component.entry.qualified

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of the teacher that are copied from the student."""
        return [theirs for _, theirs, _ in self._buffers]

    @torch.no_grad()
    def update(self, *, progress: float, step: int = 0, total_steps: int = 0) -> None:
        """Update the teacher in place after an optimizer step.

        ``step`` counts the optimizer steps that are done, this one included, out of ``total_steps``; ``progress`` is their
        quotient.

        Raises: ``SignatureError`` if the entry does not return a tensor of the same shape, or changes the student's.
        """
        values: dict[str, Any] = {"progress": checked_progress(progress), "step": step, "total_steps": total_steps}
        for name, theirs, ours in self._parameters:
            version = ours._version  # noqa: SLF001  no public name exists
            values["teacher_tensor"], values["student_tensor"] = theirs.detach(), ours.detach().to(theirs)
            found = self._target(*map(values.__getitem__, self._inputs))
            if not isinstance(found, Tensor) or found.shape != theirs.shape:
                got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise SignatureError(
                    f"{self._owner} must return a tensor {list(theirs.shape)} for {name!r}, got {got}", field=_FIELD
                )
            if ours._version != version:  # noqa: SLF001
                raise SignatureError(
                    f"{self._owner} changed the student's {name!r} in place. It must return the teacher's new tensor and leave "
                    "student_tensor unchanged",
                    field=_FIELD,
                )
            theirs.copy_(found)
        for _, theirs, ours in self._buffers:
            theirs.copy_(ours)
        UPDATES[self._teacher] = UPDATES.get(self._teacher, 0) + 1


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter and each buffer that a checkpoint holds once, without the names of torch's own wrappers."""
    saved = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in saved:
            yield ".".join(part for part in name.split(".") if part not in WRAPPERS), tensor


def _is_shared(one: Tensor, other: Tensor) -> bool:
    return one is other or one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0


def _check_same(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Raise ``ConfigError`` unless both models have parameters and buffers of the same names and shapes."""
    lines = []
    for name in dict.fromkeys((*theirs, *ours)):
        kept = [_shown(side[name]) if name in side else "missing" for side in (theirs, ours)]
        if kept[0] != kept[1]:
            lines.append(f"{name}: {kept[0]} in the teacher, {kept[1]} in the student")
    if lines:
        more = f"\n    and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise ConfigError(
            "needs a teacher of the student's architecture, such as copy.deepcopy(student). Differences:\n    "
            + "\n    ".join(lines[:_SHOWN])
            + more,
            field=_FIELD,
        )
    odd = [name for name, one in theirs.items() if isinstance(one, nn.Parameter) and not one.is_floating_point()]
    if odd:
        raise ConfigError(
            f"needs floating-point parameters, and the teacher's {odd[0]!r} is {theirs[odd[0]].dtype}. Use a teacher that is not "
            "quantised",
            field=_FIELD,
        )


def _shown(tensor: Tensor) -> str:
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    return f"{kind} without a shape yet" if is_lazy(tensor) else f"{kind} {list(tensor.shape)}"
