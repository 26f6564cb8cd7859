"""A loss wired to a pair of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdplug.contracts.loss_sum import LossSum
from kdplug.errors import KdplugError, ShapeError
from kdplug.host import registry
from kdplug.objective.batch import Batch
from kdplug.objective.feature import layers
from kdplug.objective.gradient import connected_zero, frozen
from kdplug.objective.precision import full, full_precision
from kdplug.objective.projection import ProjectionPlan, not_built, project
from kdplug.objective.schedule import Schedule, build_schedule
from kdplug.objective.term import loss_sum

if TYPE_CHECKING:
    from kdplug.config.distillation import IntermediateMatch


class MatchTerm(nn.Module):
    """One intermediate match: a loss, what it compares, and the projection of the student's side."""

    def __init__(self, match: IntermediateMatch, name: str, temperature: float) -> None:
        super().__init__()
        try:
            component = registry.losses.build(match.loss, site="match")
        except KdplugError as error:
            raise error.at("loss") from error.__cause__
        self.name = name
        self.temperature = temperature
        self.schedule: Schedule = build_schedule(match.weight, match.weight_scheduler, "weight_scheduler")
        self.loss: Any = component.target
        self.inputs = component.inputs
        self.owner = component.entry.qualified
        self.feature = match.feature
        self.layer_student, self.layer_teacher = match.layer_S, match.layer_T
        self.wants_mask, self.wants_labels = "mask" in self.inputs, "labels" in self.inputs
        self.plan = None if match.proj is None else ProjectionPlan.from_spec(match.proj)
        self.projection = self.plan.build() if self.plan is not None and self.plan.is_complete else None

    @property
    def weight(self) -> float:
        return self.schedule.base

    @property
    def needs_materialize(self) -> bool:
        return self.plan is not None and self.projection is None

    def materialize(self, batch: Batch) -> None:
        """Make the projection from the widths of one batch, where it is not made yet."""
        if self.plan is not None and self.projection is None:
            self.projection = self.plan.build(self._student(batch), self._teacher(batch))

    def parts(self, batch: Batch) -> tuple[LossSum, ...]:
        """The loss of the two features.

        Raises: ``OutputsError``, ``ConfigError`` for a layer that is not there; ``ShapeError``; ``RunError`` before
        ``materialize``.
        """
        student, teacher = self._projected(self._student(batch)), self._teacher(batch)
        with full_precision(student[0]):
            values = {
                "student_features": _as_configured(student, self.layer_student),
                "teacher_features": _as_configured(tuple(map(frozen, teacher)), self.layer_teacher),
                "mask": batch.match_mask if self.wants_mask else None,
                "labels": batch.match_labels if self.wants_labels else None,
                "temperature": self.temperature,
                "progress": batch.progress,
                "step": batch.step,
                "total_steps": batch.total_steps,
            }
            return (self._loss(values, teacher[0]),)

    def skipped(self, batch: Batch) -> Tensor:
        return connected_zero([*self._student(batch), *self.parameters()])

    def _student(self, batch: Batch) -> tuple[Tensor, ...]:
        return layers(batch.student, self.feature, self.layer_student, "student")

    def _teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        return layers(batch.teacher, self.feature, self.layer_teacher, "teacher")

    def _projected(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.plan is None:
            return features
        projection = self.projection
        if projection is None:
            raise not_built()
        for feature in features:
            self.plan.check(feature)
        return tuple([project(projection, feature) for feature in features])

    def _loss(self, values: dict[str, Any], teacher: Tensor) -> LossSum:
        try:
            return loss_sum(self.loss(*map(values.__getitem__, self.inputs)), self.owner)
        except KdplugError as error:
            error.message += self._hint(teacher)
            raise error.at("loss") from error.__cause__
        except RuntimeError as error:
            if not (hint := self._hint(teacher)):
                raise
            raise ShapeError(f"{self.owner} failed{hint}: {error}", field="loss") from error

    def _hint(self, teacher: Tensor) -> str:
        return "" if self.plan is None else self.plan.explain(teacher)


def _as_configured(features: tuple[Tensor, ...], index: int | tuple[int, ...]) -> Any:
    """A tensor for one layer, a tuple for a list of them."""
    return full(features[0]) if isinstance(index, int) else tuple([full(feature) for feature in features])
