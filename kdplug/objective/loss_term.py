"""A term of the config: a loss with its weight, on logits, on features, or on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdplug.config.layer import Layers, in_list
from kdplug.config.term import NO_SCHEDULER, compares_logits
from kdplug.config.weight import GradientShare, base_weight
from kdplug.contracts.loss import WHOLE_SEQUENCES, declares
from kdplug.contracts.vocabulary import EXTRAS
from kdplug.errors import ConfigError, KdplugError, SignatureError
from kdplug.host import registry
from kdplug.objective.batch import Batch
from kdplug.objective.feature_comparison import FeatureComparison, FeatureLoss
from kdplug.objective.logit_comparison import LogitComparison
from kdplug.objective.logit_loss import LogitLoss
from kdplug.objective.named_inputs import NamedInputs
from kdplug.objective.numerics import connected_zero, full
from kdplug.objective.projection import declared_axis, not_built
from kdplug.objective.report import TermValue
from kdplug.objective.schedule import Schedule, Temperature, build_schedule
from kdplug.objective.teacher import STUDENT, Names, place_of

if TYPE_CHECKING:
    from kdplug.config.distillation import DistillationConfig
    from kdplug.config.term import WrittenTerm
    from kdplug.host.component import Component

_COUNT = "num_examples"
_MASKS = frozenset({"mask", "student_mask", "teacher_mask"})
_COMPARED = ("teacher_logits", "teacher_sparse", "teacher_features")


def _check_needs_no_width(component: Component) -> None:
    if widths := [name for name in component.widths if name != _COUNT]:
        raise SignatureError(
            f"{component.entry.qualified} takes {' and '.join(widths)}, the widths of features. Set layer_S and layer_T in the "
            "term; a loss on logits takes the number of classes as a setting",
            field="loss",
        )


def _check_on_features(component: Component) -> None:
    if declares(component.entry.load(), WHOLE_SEQUENCES):
        raise SignatureError(
            f"{component.entry.qualified} declares whole_sequences, which is for a loss on logits. A loss on features gets whole "
            "sequences of logits without this declaration. Remove the declaration from the loss, or layer_S "
            "and layer_T from the term",
            field="loss",
        )


class LossTerm(nn.Module):
    """A loss of the config, its weight, and what it compares: ``logits`` or ``features``, of which one is ``None``.

    A loss that requests extras or parameters and no logits has ``features``, if without layers.

    ``place`` is where the config writes the term. ``teacher`` is the index of the teacher that the term reads, ``STUDENT``
    if it reads the student in its place, or ``None`` if it reads all teachers, combined. Errors name keys of the term; the caller completes them with ``place``.
    """

    def __init__(
        self, written: WrittenTerm, config: DistillationConfig, teachers: Names, *, waits: bool = False
    ) -> None:
        super().__init__()
        term = written.config
        self.config, self.name, self.place = term, written.name, written.place
        component = self._component()
        self.schedule: Schedule = build_schedule(base_weight(term.weight), term.weight_scheduler, "weight_scheduler")
        # a module if the entry is a class, trained and saved with this one; ``materialize`` builds one that takes widths
        self.loss: Any = None if component.widths else component.target
        self.inputs = component.inputs
        self.widths = component.widths
        self.owner = component.entry.qualified
        base, scheduler = config.temperature_of(term)
        self.named = NamedInputs(written, self.inputs, self.owner)
        on_logits = compares_logits(term, self.inputs)
        is_used = on_logits or "temperature" in self.inputs
        self.temperature = Temperature(base, scheduler if is_used else None)
        self.logits: LogitComparison | None = None
        self.features: FeatureComparison | None = None
        self.teacher: int | None = None
        if term.slot == "kd":
            _check_needs_no_width(component)
        if not on_logits:
            _check_on_features(component)
            self.teacher = place_of(term.teacher, teachers)
            self.features = FeatureComparison(written, component, self.temperature, self.named, waits=waits)
            self._compare = self.features.value
        else:
            is_combined = term.teacher is None and len(teachers) > 1 and not self.named.reads_teacher
            self.teacher = None if is_combined else place_of(term.teacher, teachers)
            try:
                loss = LogitLoss(
                    component,
                    self.temperature,
                    shifts=config.probability_shift,
                    named=self.named,
                    place=self.place,
                )
            except KdplugError as error:
                raise error.at("loss") from error.__cause__
            self.logits = LogitComparison(written, loss, config, teachers, self._trained)
            self._compare = self.logits.value
        self._check_effect(component)
        if self.teacher == STUDENT:
            self._check_differs()
        if self.teacher is not None:
            self.named.name_teacher(self.teacher, teachers)

    @property
    def weight(self) -> float:
        return self.schedule.base

    @property
    def share(self) -> float | None:
        """The term's share of the gradient, if its weight is one."""
        return self.config.weight.share if isinstance(self.config.weight, GradientShare) else None

    @property
    def mask_key(self) -> str:
        return "inputs_mask" if self.logits is None else "logits_mask"

    @property
    def wants_labels(self) -> bool:
        """Return whether the term reads the student's labels."""
        return "labels" in self.inputs or (self.logits is not None and self.logits.wants_labels)

    @property
    def reads_logits(self) -> bool:
        """Return whether the term reads logits."""
        return self.logits is not None or (self.features is not None and self.features.wants_logits)

    @property
    def reads_temperature(self) -> bool:
        """Return whether the term uses its temperature: in the loss, a teacher combiner, or the tail of ``SparseLogits``."""
        return "temperature" in self.inputs or (self.logits is not None and self.logits.reads_temperature)

    def _check_effect(self, component: Component) -> None:
        """Raise ``ConfigError`` for a key of the term that its loss does not use."""
        unread: dict[str, str] = {}
        if not self.reads_temperature:
            unread |= dict.fromkeys(("temperature", "temperature_scheduler"), "temperature")
        if not self.reads_logits:
            unread |= dict.fromkeys(("head_S", "head_T"), "logits")
        for key, name in unread.items():
            if getattr(self.config, key) not in (None, NO_SCHEDULER):
                raise ConfigError(f"has no effect: {self.owner} does not request {name}", field=key)
        trained = component.widths or (isinstance(self.loss, nn.Module) and any(True for _ in self.loss.parameters()))
        if self.config.loss_options and not trained:
            raise ConfigError(f"has no effect: {self.owner} has no parameters to train", field="loss_options")

    @property
    def reads_of_teacher(self) -> tuple[str, ...]:
        """The inputs of the loss and of its temperature scheduler that come from a teacher, which is not the student."""
        if self.teacher == STUDENT:
            return ()
        requested = [name for name in (*self.inputs, *self.temperature.inputs) if name.startswith("teacher_")]
        if self.layers("teacher"):
            requested.append("teacher_features")
        return tuple(dict.fromkeys(requested))

    def _check_differs(self) -> None:
        """Raise ``ConfigError`` if the term compares the student with itself, which trains nothing."""
        term = self.config
        heads_differ = None not in (term.head_S, term.head_T) and term.head_S != term.head_T
        layers_differ = term.layer_S is not None and (term.layer_S != term.layer_T or term.proj is not None)
        if heads_differ or layers_differ or not set(_COMPARED) & set(self.inputs):
            return
        raise ConfigError(
            "is student, and the term reads the same tensor on both sides, so it compares the student with itself. Select two "
            "heads with head_S and head_T, or two layers with layer_S and layer_T",
            field="teacher",
        )

    @property
    def needs_materialize(self) -> bool:
        """Return whether a width of the projection or of the loss, or its number of examples, is still unknown."""
        return self.loss is None or (self.features is not None and self.features.needs_materialize)

    def materialize(self, batch: Batch, num_examples: int | None = None) -> None:
        """Build the projection and the loss from the widths of one batch, unless they exist.

        Raises: ``ConfigError`` if the loss takes ``num_examples`` and it is not given.
        """
        if self.features is not None:
            self.features.materialize(batch)
        if self.loss is None:
            self._build_loss(batch, num_examples)

    def _build_loss(self, batch: Batch, num_examples: int | None) -> None:
        component = self._component()
        widths: dict[str, Any] = {}
        if _COUNT in component.widths:
            widths[_COUNT] = self._checked_count(num_examples)
        if self.features is not None and component.widths != (_COUNT,):
            widths |= self.features.widths(batch, declared_axis(component.entry.load(), self.owner))
        try:
            built = component.with_widths(**widths)
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
        except Exception as error:
            hint = self.features.list_hint if self.features is not None and "out_dim" in widths else ""
            self.place.note(error, self.owner, hint=hint)
            raise
        self.loss = built.target
        if isinstance(self.loss, nn.Module):
            device, dtype = self._device_and_dtype(batch)
            self.loss.to(device, dtype)
        if self.features is not None:
            self.features.loss = FeatureLoss(built, self.temperature)
        if self.logits is not None:
            self.logits.logit_loss.build(built)

    def _checked_count(self, num_examples: int | None) -> int:
        if num_examples is None:
            raise ConfigError(
                f"{self.name}: {self.owner} takes num_examples, the number of examples in the data, which is unknown. In "
                "your own loop, call objective.materialize(student=…, teacher=…, num_examples=len(dataset))",
                field="loss",
            )
        if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
            raise ConfigError(f"must be a whole number of at least 1, got {num_examples!r}", field=_COUNT)
        return num_examples

    def _device_and_dtype(self, batch: Batch) -> tuple[torch.device, torch.dtype]:
        """Return the device and the precision of a module for what the term reads: at least float32."""
        comparison = self.features or self.logits
        assert comparison is not None
        first = next(iter(comparison.read(batch)), None)
        if first is None:  # a term without layers reads only what it names
            first = self.named.any_tensor(batch)
        return first.device, full(first).dtype if first.is_floating_point() else torch.float32

    def _component(self) -> Component:
        """Look up the entry of the loss and bind its settings."""
        try:
            return registry.losses.build(self.config.loss, slot=self.config.slot)
        except KdplugError as error:
            raise error.at("loss") from error.__cause__

    def groups(self) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
        """Yield each module with its own optimizer options: the projection, and a loss with ``loss_options``.

        Raises: ``RunError`` if one is not built yet.
        """
        if self.needs_materialize:
            raise not_built(self.owner if self.loss is None else "", self.widths)
        if self.features is not None and self.features.plan is not None and self.features.projection is not None:
            yield self.features.projection, self.features.plan.options
        if self.config.loss_options:
            yield self.loss, self.config.loss_options

    def layers(self, side: str) -> tuple[Any, ...]:
        """Return the layers that the term reads of ``student`` or ``teacher``, as indices or module paths."""
        if self.features is None:
            return ()
        found: Layers = self.features.layer_student if side == "student" else self.features.layer_teacher
        return in_list(found)

    @property
    def reads(self) -> frozenset[str]:
        """The adaptor keys that the term reads. A feature that is captured by module path needs none."""
        return frozenset(self._reads())

    def _reads(self) -> Iterator[str]:
        if self.reads_logits:
            yield "logits"
        if self.logits is not None:
            yield "logits_mask"
        if self.wants_labels:
            yield "labels"
        if self.named.extras:
            yield EXTRAS
        if self.features is None:
            return
        if self.features.feature == "attention" or any(
            isinstance(layer, int) for layer in (*self.layers("student"), *self.layers("teacher"))
        ):
            yield self.features.feature
        if _MASKS & set(self.inputs):
            yield "inputs_mask"

    def value(self, batch: Batch, weight: float) -> TermValue:
        """Compute the term for one batch, with its current weight.

        Raises: ``OutputsError``, ``ShapeError``, ``ConfigError`` for outputs that it cannot read; ``RunError`` before
        ``materialize``.
        """
        return self._compare(batch, weight)

    def student_tensors(self, batch: Batch) -> list[Tensor]:
        """Return the student tensors that the term reads."""
        named = self.named.student_tensors(batch)
        if self.logits is not None:
            return [*self.logits.student_tensors(batch), *named]
        assert self.features is not None
        return [*self.features.read(batch), *named]

    def skipped(self, batch: Batch) -> Tensor:
        """Return a 0 that is connected to the student tensors and the parameters that ``value`` would use."""
        comparison = self.features if self.logits is None else self.logits
        assert comparison is not None
        named = self.named.student_tensors(batch)
        return connected_zero([*comparison.read(batch), *named, *self.parameters()])

    def _trained(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)
