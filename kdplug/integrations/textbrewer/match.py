"""Intermediate matches and their projections, computed and named as in TextBrewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdplug.config.term import unique
from kdplug.errors import KdplugError, OutputsError
from kdplug.host.spec import parse_spec
from kdplug.host.textbrewer_maps import MATCH_LOSS_MAP, PROJ_MAP, MatchLoss
from kdplug.integrations.textbrewer.configurations import IntermediateMatch
from kdplug.integrations.textbrewer.term import Progress
from kdplug.objective.batch import doubt, nan_if


def make_projections(matches: Sequence[IntermediateMatch], device: Any) -> tuple[list[Any], list[Any]]:
    """Return the projection of each match, or ``None``, and the options of its optimizer group."""
    projections: list[Any] = []
    options: list[Any] = []
    for match in matches:
        if match.proj is None:
            projections.append(None)
            options.append(None)
        else:
            name, width_S, width_T, group = match.proj
            projections.append(PROJ_MAP[name](width_S, width_T).to(device))
            options.append(group)
    return projections, options


def find_losses(matches: Sequence[IntermediateMatch]) -> list[Any]:
    """Return the loss of each match. Raises: ``EntryError``, ``ConfigError`` with the path of the name."""
    found = []
    for place, match in enumerate(matches):
        try:
            found.append(MATCH_LOSS_MAP[match.loss])
        except KdplugError as error:
            raise error.at("intermediate_matches", place, "loss") from error.__cause__
    return found


def log_names(matches: Sequence[IntermediateMatch]) -> list[str]:
    """Return the name of each match in the log, such as ``unweighted_hidden_mmd_3-3_12-12``.

    A repeated name gets ``_2``.
    """
    return unique(
        (
            f"unweighted_{match.feature}_{parse_spec(match.loss).name}_{_joined(match.layer_S)}_{_joined(match.layer_T)}"
            for match in matches
        ),
        (),
    )


def _joined(layer: int | list[int]) -> str:
    return "-".join(map(str, layer)) if isinstance(layer, list) else str(layer)


def match_value(
    match: IntermediateMatch,
    loss: Any,
    projection: nn.Module | None,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    progress: Progress,
) -> Any:
    """Return the unweighted loss of one match. The mask is the student's ``inputs_mask``, as in TextBrewer.

    Raises: ``OutputsError`` for a layer that an adaptor did not return, and for an invalid mask.
    """
    ours = _features(student, match.feature, match.layer_S, "adaptor_S")
    theirs = _features(teacher, match.feature, match.layer_T, "adaptor_T")
    if projection is not None:
        ours = [projection(feature) for feature in ours]
    mask, teacher_mask = student.get("inputs_mask"), teacher.get("inputs_mask")
    doubts = [
        found
        for one, side in ((mask, "adaptor_S"), (teacher_mask, "adaptor_T"))
        if one is not None and (found := doubt(one, f"the inputs_mask that {side} returned")) is not None
    ]
    if not isinstance(loss, MatchLoss):
        return nan_if(loss(*_as_given(match, ours, theirs, list), mask=mask), doubts)
    others = {
        "student_mask": _bool(mask),
        "teacher_mask": _bool(teacher_mask),
        "labels": _single(student.get("labels")),
        "example_ids": progress.example_ids,
        **progress.inputs(),
    }
    return nan_if(loss(*_as_given(match, ours, theirs, tuple), mask=_bool(mask), **others), doubts)


def _as_given(match: IntermediateMatch, ours: list[Tensor], theirs: list[Tensor], form: Any) -> tuple[Any, Any]:
    if isinstance(match.layer_S, list):
        return form(ours), form(theirs)
    return ours[0], theirs[0]


def _features(outputs: Mapping[str, Any], feature: str, layer: int | list[int], side: str) -> list[Tensor]:
    found = outputs.get(feature, ())
    layers = layer if isinstance(layer, list) else [layer]
    try:
        return [found[index] for index in layers]
    except IndexError:
        raise OutputsError(
            f"{side} returned no layer {layer} of {feature!r} (number of layers: {len(found)})"
        ) from None


def _bool(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask != 0


def _single(labels: Sequence[Tensor] | None) -> Tensor | None:
    return labels[0] if labels and len(labels) == 1 else None
