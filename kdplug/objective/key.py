"""Which adaptor keys an objective reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdplug.config.layer import Layers, in_list
from kdplug.objective.match_term import MatchTerm

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective

_MASKS = {"mask", "student_mask", "teacher_mask"}


def keys_read(objective: Objective) -> frozenset[str]:
    """The keys of either side's adaptor that a term reads; see ``ReadsAware.expect`` for features that go by path.

    A layer map that waits for its layers counts as reading a mask: its loss is not looked up yet.
    """
    found: set[str] = set()
    if objective.kd_loss is not None:
        found |= {"logits", "logits_mask"} | ({"labels"} if objective.kd_loss.wants_labels else set())
    if objective.hard_label_loss is not None:
        found.add("losses")
    for term, _, _ in objective.matches.terms():
        found |= set(_of_match(term))
    for waiting in objective.matches.waiting:
        found.add("inputs_mask")
        if waiting.feature == "attention" or None in (waiting.layer_S, waiting.layer_T):
            found.add(waiting.feature)
    return frozenset(found)


def _of_match(term: MatchTerm) -> Iterator[str]:
    if term.feature == "attention" or _by_index(term.layer_student) or _by_index(term.layer_teacher):
        yield term.feature
    if _MASKS & set(term.inputs):
        yield "inputs_mask"
    if term.wants_labels:
        yield "labels"


def _by_index(layers: Layers) -> bool:
    return any(isinstance(layer, int) for layer in in_list(layers))
