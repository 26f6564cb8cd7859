"""What the terms of matches are called in reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kdplug.config.layer import Layers, in_list
from kdplug.objective.hard_label_term import HardLabelTerm
from kdplug.objective.kd_term import KdTerm
from kdplug.objective.term import unique

if TYPE_CHECKING:
    from kdplug.config.match import IntermediateMatch


def match_names(matches: Sequence[IntermediateMatch], taken: Iterable[str] = ()) -> list[str]:
    """Each match's own name, or ``feature_loss_S_T``; none of them one of ``taken``, or that of another term."""
    given = [match.name for match in matches if match.name is not None]
    defaults = (_default(match) for match in matches if match.name is None)
    free = iter(unique(defaults, [KdTerm.name, HardLabelTerm.name, *given, *taken]))
    return [match.name or next(free) for match in matches]


def _default(match: IntermediateMatch) -> str:
    loss = match.loss.name.rpartition(":")[2]
    teacher = "" if match.teacher is None else f"_teacher_{match.teacher}"
    return f"{match.feature}_{loss}_{_joined(match.layer_S)}_{_joined(match.layer_T)}{teacher}"


def _joined(layers: Layers) -> str:
    return "-".join(map(str, in_list(layers)))
