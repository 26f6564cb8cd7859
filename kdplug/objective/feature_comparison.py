"""Compare the features of two layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdplug.config.layer import Layers, in_list, is_glob, is_listed, is_path
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss import ANY_LAYERS, declares
from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.errors import ConfigError, KdplugError, OutputsError, ShapeError
from kdplug.objective.batch import Batch, extended_hint, gathered
from kdplug.objective.capture.path import Modules, Side
from kdplug.objective.named_inputs import NamedInputs, named_getters
from kdplug.objective.numerics import full, target
from kdplug.objective.projection import ProjectionPlan, axis_hint, not_built, project, width_along, without_garbage
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Temperature
from kdplug.objective.selection import heads_of
from kdplug.objective.term import term_value

if TYPE_CHECKING:
    from kdplug.config.term import WrittenTerm
    from kdplug.host.component import Component


_HOW = {
    "hidden": "Return 'hidden' from the adaptor; a transformers model returns hidden_states with output_hidden_states=True",
    "attention": (
        "Return 'attention' from the adaptor; a transformers model returns attentions with output_attentions=True and "
        'attn_implementation="eager"'
    ),
}


def layers(outputs: Outputs, feature: str, layer: Layers, side: str) -> tuple[Tensor, ...]:
    """Return the tensors at ``layer`` as a tuple: by index (negative ones count from the end), or captured at a path.

    ``side`` is ``student`` or ``teacher``.

    Raises: ``OutputsError`` if the model returned no such feature, or nothing was captured; ``ConfigError`` if an index
    is out of range.
    """
    if layer == ():
        return ()
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
        raise OutputsError(f"the {side}'s forward pass did not call {path!r}. Name a module that it calls", field=field)
    raise OutputsError(
        f"nothing was captured at {path!r} in the {side}. A distiller captures features while it runs a model, "
        "and runs no teacher for a batch with a key 'teacher_cache'. In your own loop use objective.capture(student, teacher)",
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


_LOGITS = frozenset({"student_logits", "teacher_logits"})
_MASKS = frozenset({"mask", "student_mask", "teacher_mask"})


class FeatureLoss:
    """A loss on features, its requested inputs and its temperature."""

    def __init__(self, component: Component, temperature: Temperature) -> None:
        self.target: Any = component.target
        self.temperature = temperature
        self.getters = tuple(_GETTERS[name] for name in component.inputs)

    def inputs(self, compared: FeatureInputs) -> list[Any]:
        """Return the values of the requested inputs."""
        return [get(compared) for get in self.getters]


class FeatureComparison(nn.Module):
    """Computes a loss on the features of two layers, or of two lists, after the projection of the student's.

    With ``waits``, the projection is built by ``materialize`` even if its widths are known, so that it matches the
    features' device and precision. A loss that requests logits gets those of one head. A term without layers reads only
    what it names (``named``).
    """

    def __init__(
        self,
        written: WrittenTerm,
        component: Component,
        temperature: Temperature,
        named: NamedInputs,
        *,
        waits: bool = False,
    ) -> None:
        super().__init__()
        term = written.config
        ours, theirs = (() if layer is None else layer for layer in (term.layer_S, term.layer_T))
        self.term, self.place = term, written.place
        self.named = named
        self.loss: FeatureLoss | None = None if component.widths else FeatureLoss(component, temperature)
        self.inputs = component.inputs
        self.loss_widths = component.widths
        self.owner, self.axis_hint = component.entry.qualified, ""
        self.feature = term.feature
        self.written: dict[Side, Layers] = {"student": ours, "teacher": theirs}
        self.is_single = not is_listed(ours, theirs)
        self.layer_student, self.layer_teacher = (ours, theirs) if self.is_single else (in_list(ours), in_list(theirs))
        self.takes_any_layers = declares(component.entry.load(), ANY_LAYERS)
        self._check_counts()
        self.wants_logits = bool(_LOGITS & set(self.inputs))
        self.plan = None if term.proj is None else ProjectionPlan.from_spec(term.proj)
        self.projection = self.plan.build() if self.plan is not None and self.plan.is_complete and not waits else None
        if "temperature" in self.inputs and not self.wants_logits:
            temperature.check_reads_no_logits(self.owner)

    @property
    def list_hint(self) -> str:
        """Say what a loss gets for lists of layers, if they are lists: a loss that takes single layers fails on it."""
        gets = "widths are lists" if self.loss_widths else "features are tuples"
        return "" if self.is_single else f"layer_S and layer_T are lists, so {gets}; give single layers"

    @property
    def needs_materialize(self) -> bool:
        """Return whether the projection's width is still unknown."""
        return self.plan is not None and self.projection is None

    def connect(self, student: Modules | None, teacher: Modules | None) -> None:
        """Resolve the module paths in both models and expand globs; ``None`` leaves a side unchanged.

        Raises: ``ConfigError`` with the side as its field.
        """
        if student is not None:
            self.layer_student = self._expanded(student, self.written["student"], "layer_S")
        if teacher is not None:
            self.layer_teacher = self._expanded(teacher, self.written["teacher"], "layer_T")
        self._check_counts()

    def _check_counts(self) -> None:
        """Raise ``ConfigError`` for lists of different lengths, unless the loss declares ``any_layers``."""
        ours, theirs = in_list(self.layer_student), in_list(self.layer_teacher)
        if len(ours) != len(theirs) and not (self.takes_any_layers or is_glob(ours) or is_glob(theirs)):
            raise ConfigError(
                f"the number of layers in layer_S, {len(ours)} ({', '.join(map(str, ours))}), differs from that in layer_T, "
                f"{len(theirs)} ({', '.join(map(str, theirs))}). List the same number on both sides, or use a loss that declares "
                f"any_layers, which {self.owner} does not"
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

    def widths(self, batch: Batch, axis: int) -> dict[str, int | list[int]]:
        """Return ``in_dim``, of the student's features after the projection, and ``out_dim``: lists for lists of layers.

        Raises: ``ShapeError`` for a feature without this axis.
        """
        student, teacher = self._student(batch), self._teacher(batch)
        in_dim = [width_along(feature, axis, self.owner, field="loss") for feature in student]
        if self.plan is not None and self.plan.axis == axis:
            in_dim = [self.plan.width_after(teacher)] * len(student)
        out_dim = [width_along(feature, axis, self.owner, field="loss") for feature in teacher]
        sizes = {"in_dim": in_dim, "out_dim": out_dim}
        found = {name: one[0] if self.is_single else one for name, one in sizes.items()}
        self.axis_hint = axis_hint(axis, {name: found[name] for name in self.loss_widths if name in found}, student)
        return found

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Compute the loss of the two features.

        Raises: ``OutputsError``, ``ConfigError`` for a missing layer; ``ShapeError``; ``RunError`` before
        ``materialize``.
        """
        student, teacher = self._student(batch), self._teacher(batch)
        if self.plan is not None:
            student = self._projected(student, self.plan, batch)
        one = student[0] if student else self.named.any_tensor(batch)
        if not batch.autocast(one):
            return self._compared(student, teacher, batch, weight)
        with torch.autocast(one.device.type, enabled=False):
            return self._compared(student, teacher, batch, weight)

    def read(self, batch: Batch) -> list[Tensor]:
        """Return the student tensors that ``value`` reads. Raises: ``OutputsError`` if there are none."""
        logits = self._head(batch.student, 0) if self.wants_logits else None
        tensors = () if logits is None else (logits,) if isinstance(logits, Tensor) else logits.tensors
        return [*self._student(batch), *tensors]

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

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of one head, whole and in float32 or wider: the student's, and the teacher's detached.

        Raises: ``OutputsError`` if a side returned none, or SparseLogits.
        """
        student, teacher = self._head(batch.student, 0), self._head(batch.teacher, 1)
        return full(_dense(student)), target(_dense(teacher))

    def _head(self, outputs: Outputs, place: int) -> Tensor | FactoredLogits:
        side, key = ("student", "head_S") if place == 0 else ("teacher", "head_T")
        head = (self.term.head_S, self.term.head_T)[place] or 0
        if outputs.logits is None:
            given = ", ".join(outputs.given) or "nothing"
            raise OutputsError(
                f"{self.owner} requests {side}_logits, but the {side} returned no logits, only {given}. Return logits from "
                f"the {side}'s adaptor",
                field="loss",
            )
        if head >= len(outputs.logits):
            raise OutputsError(
                f"there is no head {head}: the {side} returned logits of {heads_of(len(outputs.logits))}", field=key
            )
        logits = outputs.logits[head]
        if isinstance(logits, SparseLogits):
            raise OutputsError(
                f"{self.owner} requests {side}_logits together with features, but the logits are SparseLogits. Return or store "
                "dense logits",
                field=f"{side}.logits",
            )
        found = gathered(logits)
        assert not isinstance(found, SparseLogits)
        return found

    def labels(self, batch: Batch) -> Tensor | None:
        """Return the student's labels of ``head_S``, or its only ones.

        Raises: ``OutputsError`` if there are several and no head is selected.
        """
        labels, head = batch.student.labels, self.term.head_S
        if labels is None or head is None:
            return batch.match_labels
        if head >= len(labels):
            raise OutputsError(
                f"there is no head {head}: the student returned labels of {heads_of(len(labels))}", field="head_S"
            )
        return labels[head]

    def _mask(self, batch: Batch) -> Tensor | None:
        """Return the mask that the loss requests, which may be the student's alone."""
        if "mask" in self.inputs:
            return batch.match_mask
        return batch.student_mask if "student_mask" in self.inputs else None

    def _compared(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch, weight: float
    ) -> TermValue:
        loss = self.loss
        if loss is None:
            raise not_built(self.owner, self.loss_widths)
        compared = FeatureInputs(self, loss.temperature, student, teacher, batch)
        values = loss.inputs(compared)
        try:
            return batch.certain(term_value(loss.target(*values), weight, self.owner))
        except KdplugError as error:
            error.message += self._hint(student, teacher, batch)
            raise error.at("loss") from error.__cause__
        except Exception as error:
            if isinstance(error, RuntimeError) and (hint := self._hint(student, teacher, batch)):
                raise ShapeError(f"{self.owner} failed: {error}{hint}", field="loss") from error
            lacks_labels = batch.student.labels is None and "labels" in self.inputs
            self.place.note(error, self.owner, lacks_labels=lacks_labels, hint=self.axis_hint or self.list_hint)
            raise

    def _hint(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> str:
        """Suggest a cause for an error in the loss: the projection's width or a lack of one, or the shape of a mask."""
        masks = (batch.student.inputs_mask, batch.teacher.inputs_mask) if _MASKS.intersection(self.inputs) else ()
        if self.axis_hint:
            return f". {self.axis_hint}"
        if self.plan is not None:
            return self.plan.explain(teacher[0]) + extended_hint(*masks)
        fits_widths = bool(self.loss_widths) or self.feature != "hidden"
        if not student or fits_widths or student[0].shape[-1:] == teacher[0].shape[-1:]:
            return extended_hint(*masks)
        own, theirs = student[0].shape[-1:], teacher[0].shape[-1:]
        lacks = f". The student's features are {own[0]} wide, the teacher's {theirs[0]}: add proj: linear to the match"
        return lacks + extended_hint(*masks)


def _dense(logits: Tensor | FactoredLogits) -> Tensor:
    return logits if isinstance(logits, Tensor) else logits.dense()


class FeatureInputs(NamedTuple):
    """Source of a loss's inputs."""

    comparison: FeatureComparison
    temperature: Temperature
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    batch: Batch


def _student_features(compared: FeatureInputs) -> Tensor | tuple[Tensor, ...]:
    features = compared.student
    return full(features[0]) if compared.comparison.is_single else tuple(map(full, features))


def _teacher_features(compared: FeatureInputs) -> Tensor | tuple[Tensor, ...]:
    features = compared.teacher
    return target(features[0]) if compared.comparison.is_single else tuple(map(target, features))


def _example_ids(compared: FeatureInputs) -> Tensor:
    if not compared.student:
        return compared.comparison.named.example_ids(compared.batch)
    return compared.batch.ids_of(compared.student[0], compared.comparison.owner, "features")


def _temperature(compared: FeatureInputs) -> float | Tensor:
    comparison, batch, temperature = compared.comparison, compared.batch, compared.temperature
    if temperature.scheduler is None or not comparison.wants_logits:
        return temperature.of_batch(batch)
    return temperature.of(*comparison.logits(batch), batch)


_GETTERS: Mapping[str, Callable[[FeatureInputs], Any]] = {
    "student_features": _student_features,
    "teacher_features": _teacher_features,
    "student_logits": lambda compared: compared.comparison.logits(compared.batch)[0],
    "teacher_logits": lambda compared: compared.comparison.logits(compared.batch)[1],
    "mask": attrgetter("batch.match_mask"),
    "student_mask": attrgetter("batch.student_mask"),
    "teacher_mask": attrgetter("batch.teacher_mask"),
    "labels": lambda compared: compared.comparison.labels(compared.batch),
    "example_ids": _example_ids,
    "temperature": _temperature,
    "progress": attrgetter("batch.progress"),
    "step": attrgetter("batch.step"),
    "total_steps": attrgetter("batch.total_steps"),
    "epoch": attrgetter("batch.epoch"),
    "draw_seed": lambda compared: compared.batch.draws.next(),
    **named_getters("comparison"),
}
"""The inputs available to a loss on features. Only requested inputs are computed."""
