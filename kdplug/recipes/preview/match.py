"""Features and projections of the matches in a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kdplug.objective.feature_comparison import FeatureComparison, layers
from kdplug.objective.loss_term import LossTerm
from kdplug.objective.teacher import STUDENT
from kdplug.recipes.measure import count_parameters
from kdplug.recipes.preview.sample import Sample


@dataclass(frozen=True, slots=True)
class PlannedProjection:
    """A projection from the student's width to the teacher's."""

    name: str
    in_dim: int
    out_dim: int
    parameters: int


@dataclass(frozen=True, slots=True)
class PlannedMatch:
    """The features that one term compares: layer and shape on each side, and the projection.

    A layer is an index into the adaptor's ``feature``, or the path of a captured module.
    """

    term: str
    feature: str
    student: list[tuple[str, list[int]]]
    teacher: list[tuple[str, list[int]]]
    projection: PlannedProjection | None


def planned_matches(sample: Sample) -> list[PlannedMatch]:
    """Return the layers and shapes that each match reads from the first batch, in the order of the terms."""
    read = sample.objective.configured.on_features()
    return [_planned(term, features, sample) for term, features in read if term.layers("student")]


def features(term: LossTerm, read: FeatureComparison, sample: Sample) -> Iterator[tuple[str, Tensor]]:
    """Yield the side and the tensor of each feature that a loss on features reads."""
    theirs = sample.of_student if term.teacher == STUDENT else sample.of_teacher
    for tensor in layers(sample.of_student, read.feature, read.layer_student, "student"):
        yield "student", tensor
    for tensor in layers(theirs, read.feature, read.layer_teacher, "teacher"):
        yield "teacher", tensor


def _planned(term: LossTerm, read: FeatureComparison, sample: Sample) -> PlannedMatch:
    found = list(features(term, read, sample))
    student = [tensor for side, tensor in found if side == "student"]
    teacher = [tensor for side, tensor in found if side == "teacher"]
    return PlannedMatch(
        term=term.name,
        feature=read.feature,
        student=_shapes(list(map(str, term.layers("student"))), student),
        teacher=_shapes(list(map(str, term.layers("teacher"))), teacher),
        projection=_projection(read, student[0], teacher[0]),
    )


def _shapes(names: list[str], tensors: list[Tensor]) -> list[tuple[str, list[int]]]:
    return [(name, list(tensor.shape)) for name, tensor in zip(names, tensors, strict=True)]


def _projection(read: FeatureComparison, student: Tensor, teacher: Tensor) -> PlannedProjection | None:
    plan, module = read.plan, read.projection
    if plan is None or module is None:
        return None
    in_dim = plan.width(student) if plan.in_dim is None else plan.in_dim
    out_dim = plan.width(teacher) if plan.out_dim is None else plan.out_dim
    return PlannedProjection(plan.owner, in_dim, out_dim, count_parameters(module))
