"""Intermediate matches: a loss on a pair of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdplug.config.layer import Layers, in_list, is_glob, is_listed, is_path
from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, KdplugError, OutputsError, ShapeError
from kdplug.host import registry
from kdplug.objective.batch import Batch, extended_hint
from kdplug.objective.capture.path import Modules
from kdplug.objective.numerics import connected_zero, full, target
from kdplug.objective.projection import ProjectionPlan, not_built, project, without_garbage
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Schedule, Temperature, build_schedule
from kdplug.objective.term import term_value

if TYPE_CHECKING:
    from kdplug.config.distillation import IntermediateMatch
    from kdplug.host.spec import ComponentSpec


_HOW = {
    "hidden": "Return it from the adaptor; a transformers model gives it with output_hidden_states=True",
    "attention": (
        "Return it from the adaptor; a transformers model gives it with output_attentions=True and "
        'attn_implementation="eager"'
    ),
}


def layers(outputs: Outputs, feature: str, layer: Layers, side: str) -> tuple[Tensor, ...]:
    """Return the tensors at ``layer`` as a tuple: by index (negative ones count from the end), or captured at a path.

    ``side`` is ``student`` or ``teacher``.

    Raises: ``OutputsError`` if the model returned no such feature, or nothing was captured; ``ConfigError`` if an index
    is out of range.
    """
    if isinstance(layer, str):
        return (_captured(outputs, layer, side),)
    if isinstance(layer, tuple) and any(map(is_path, layer)):
        return tuple([tensor for one in layer for tensor in layers(outputs, feature, one, side)])
    return _by_index(outputs, feature, cast("int | tuple[int, ...]", layer), side)


def _by_index(outputs: Outputs, feature: str, index: int | tuple[int, ...], side: str) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] | None = outputs.hidden if feature == "hidden" else outputs.attention
    if not found:
        raise _missing(outputs, feature, side, empty=found is not None)
    try:
        if isinstance(index, int):
            return (found[index],)
        return tuple([found[one] for one in index])
    except IndexError:
        raise _out_of_range(len(found), feature, index, side) from None


def _captured(outputs: Outputs, path: str, side: str) -> Tensor:
    if outputs.captured is not None and path in outputs.captured:
        return outputs.captured[path]
    field = "layer_S" if side == "student" else "layer_T"
    if outputs.captured is not None:
        raise OutputsError(f"the {side}'s forward pass did not call {path!r}", field=field)
    raise OutputsError(
        f"nothing was captured at {path!r} in the {side}. A distiller captures features while it runs a model, "
        "and it runs no teacher for a batch with teacher_cache. In your own loop use objective.capture(student, teacher)",
        field=field,
    )


def _missing(outputs: Outputs, feature: str, side: str, *, empty: bool) -> OutputsError:
    if empty:
        reason = (
            '. Attention kernels such as sdpa do not return attention: load the model with attn_implementation="eager"'
            if feature == "attention"
            else f". {_HOW[feature]}"
        )
        return OutputsError(f"the {side} returned no layers in {feature!r}{reason}", field="feature")
    given = ", ".join(outputs.given) or "nothing"
    return OutputsError(f"the {side} returned no {feature!r}, only {given}. {_HOW[feature]}", field="feature")


def _out_of_range(count: int, feature: str, index: int | tuple[int, ...], side: str) -> ConfigError:
    indices = (index,) if isinstance(index, int) else index
    wrong = next(one for one in indices if not -count <= one < count)
    valid = f"layers, 0 to {count - 1} (or {-count} to -1)" if count > 1 else "layer, 0 (or -1)"
    return ConfigError(
        f"there is no layer {wrong}: the {side} returned {count} {feature} {valid}",
        field="layer_S" if side == "student" else "layer_T",
    )


_MASKS = frozenset({"mask", "student_mask", "teacher_mask"})


class MatchTerm(nn.Module):
    """One intermediate match: a loss, the features it compares, and the projection of the student's side.

    With ``waits``, the projection is built by ``materialize`` even if its widths are known, so that it matches the
    features' device and precision. A loss that requests ``temperature`` gets that of ``use_temperature``.
    """

    mask_key = "inputs_mask"

    def __init__(self, match: IntermediateMatch, name: str, *, waits: bool = False) -> None:
        super().__init__()
        try:
            component = registry.losses.build(match.loss, slot="match")
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
        self.name = name
        self.teacher = match.teacher
        self.schedule: Schedule = build_schedule(match.weight, match.weight_scheduler, "weight_scheduler")
        self.loss: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.feature = match.feature
        self.match = match
        self.is_single = not is_listed(match.layer_S, match.layer_T)
        self.layer_student, self.layer_teacher = (
            (match.layer_S, match.layer_T) if self.is_single else (in_list(match.layer_S), in_list(match.layer_T))
        )
        self.temperature: Temperature | None = None
        self.getters = tuple(_GETTERS[name] for name in self.inputs)
        self.wants_labels = "labels" in self.inputs
        self.plan = None if match.proj is None else ProjectionPlan.from_spec(match.proj)
        self.projection = self.plan.build() if self.plan is not None and self.plan.is_complete and not waits else None

    @property
    def weight(self) -> float:
        return self.schedule.base

    def use_temperature(self, base: float, scheduler: ComponentSpec | None) -> None:
        """Set the temperature for the loss, if it requests one.

        Raises: ``ConfigError`` for a scheduler that reads logits, which a match does not have.
        """
        if "temperature" in self.inputs:
            self.temperature = Temperature(base, scheduler)
            self.temperature.check_reads_no_logits(self.name, self.owner)

    @property
    def needs_materialize(self) -> bool:
        """Return whether the projection's width is still unknown."""
        return self.plan is not None and self.projection is None

    def connect(self, student: Modules | None, teacher: Modules | None) -> None:
        """Resolve the module paths in both models and expand globs; ``None`` leaves a side unchanged.

        Raises: ``ConfigError`` with the side as its field.
        """
        if student is not None:
            self.layer_student = self._expanded(student, self.match.layer_S, "layer_S")
        if teacher is not None:
            self.layer_teacher = self._expanded(teacher, self.match.layer_T, "layer_T")
        ours, theirs = in_list(self.layer_student), in_list(self.layer_teacher)
        if len(ours) != len(theirs) and not (is_glob(ours) or is_glob(theirs)):
            raise ConfigError(
                f"layer_S is {len(ours)} layers ({', '.join(map(str, ours))}) and layer_T {len(theirs)} "
                f"({', '.join(map(str, theirs))}). Their numbers must be equal"
            )

    def _expanded(self, modules: Modules, layers: Layers, field: str) -> Layers:
        try:
            return modules.expand(layers, listed=not self.is_single)
        except ConfigError as error:
            raise error.at(field) from None

    def materialize(self, batch: Batch) -> None:
        """Build the projection from the widths of one batch, unless it exists."""
        if self.plan is not None and self.projection is None:
            self.projection = self.plan.build(self._student(batch), self._teacher(batch))

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Compute the loss of the two features.

        Raises: ``OutputsError``, ``ConfigError`` for a missing layer; ``ShapeError``; ``RunError`` before
        ``materialize``.
        """
        student = layers(batch.student, self.feature, self.layer_student, "student")
        teacher = layers(batch.teacher, self.feature, self.layer_teacher, "teacher")
        if self.plan is not None:
            student = self._projected(student, self.plan, batch)
        if not batch.autocast(student[0]):
            return self._compared(student, teacher, batch, weight)
        with torch.autocast(student[0].device.type, enabled=False):
            return self._compared(student, teacher, batch, weight)

    def student_tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        return self._student(batch)

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero([*self._student(batch), *self.parameters()])

    def _student(self, batch: Batch) -> tuple[Tensor, ...]:
        return layers(batch.student, self.feature, self.layer_student, "student")

    def _teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        return layers(batch.teacher, self.feature, self.layer_teacher, "teacher")

    def _projected(self, features: tuple[Tensor, ...], plan: ProjectionPlan, batch: Batch) -> tuple[Tensor, ...]:
        projection = self.projection
        if projection is None:
            raise not_built()
        for feature in features:
            plan.check(feature)
        mask = self._mask(batch)
        if mask is not None:
            features = tuple([without_garbage(feature, mask) for feature in features])
        return tuple([project(projection, feature) for feature in features])

    def _mask(self, batch: Batch) -> Tensor | None:
        """Return the mask that the loss requests, which may be the student's alone."""
        if "mask" in self.inputs:
            return batch.match_mask
        return batch.student_mask if "student_mask" in self.inputs else None

    def _compared(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch, weight: float
    ) -> TermValue:
        compared = MatchInputs(self, student, teacher, batch)
        values = [get(compared) for get in self.getters]
        try:
            return batch.certain(term_value(self.loss(*values), weight, self.owner))
        except KdplugError as error:
            error.message += self._hint(student, teacher, batch)
            raise error.at("loss") from error.__cause__
        except RuntimeError as error:
            if not (hint := self._hint(student, teacher, batch)):
                raise
            raise ShapeError(f"{self.owner} failed{hint}: {error}", field="loss") from error

    def _hint(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> str:
        """Suggest a cause for an error in the loss: the projection's width or a lack of one, or the shape of a mask."""
        masks = (batch.student.inputs_mask, batch.teacher.inputs_mask) if _MASKS.intersection(self.inputs) else ()
        if self.plan is not None:
            return self.plan.explain(teacher[0]) + extended_hint(*masks)
        own, theirs = student[0].shape[-1:], teacher[0].shape[-1:]
        if self.feature != "hidden" or own == theirs:
            return extended_hint(*masks)
        lacks = f". The student's features are {own[0]} wide, the teacher's {theirs[0]}: add proj: linear to the match"
        return lacks + extended_hint(*masks)


class MatchInputs(NamedTuple):
    """Source of a loss's inputs."""

    term: MatchTerm
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    batch: Batch


def _student_features(compared: MatchInputs) -> Tensor | tuple[Tensor, ...]:
    features = compared.student
    return full(features[0]) if compared.term.is_single else tuple(map(full, features))


def _teacher_features(compared: MatchInputs) -> Tensor | tuple[Tensor, ...]:
    features = compared.teacher
    return target(features[0]) if compared.term.is_single else tuple(map(target, features))


def _temperature(compared: MatchInputs) -> float | Tensor:
    assert compared.term.temperature is not None
    return compared.term.temperature.of_batch(compared.batch)


_GETTERS: Mapping[str, Callable[[MatchInputs], Any]] = {
    "student_features": _student_features,
    "teacher_features": _teacher_features,
    "mask": attrgetter("batch.match_mask"),
    "student_mask": attrgetter("batch.student_mask"),
    "teacher_mask": attrgetter("batch.teacher_mask"),
    "labels": attrgetter("batch.match_labels"),
    "temperature": _temperature,
    "progress": attrgetter("batch.progress"),
    "step": attrgetter("batch.step"),
    "total_steps": attrgetter("batch.total_steps"),
    "draw_seed": lambda compared: compared.batch.draws.next(),
}
"""The inputs available to a match. Only requested inputs are computed."""
