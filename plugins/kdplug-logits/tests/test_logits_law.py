"""Every entry under the laws of the author's kit, each against its plain formula."""

from __future__ import annotations

import logits_oracle as oracle
import pytest

import kdplug
from kdplug.testing import LossLaws, broken_laws


def plain(formula, **settings):
    """A formula under the names that a loss gives its inputs."""
    return staticmethod(
        lambda student_logits, teacher_logits, temperature: formula(
            student_logits, teacher_logits, temperature, **settings
        )
    )


class TestKl(LossLaws):
    entry = "kdplug-logits:kl"
    non_negative = zero_at_equality = reaches_teacher = True
    ignores_impossible_classes = corrects_confident_mistakes = True
    t2 = True
    oracle = plain(oracle.kl)


class TestReverseKl(LossLaws):
    entry = "kdplug-logits:reverse_kl"
    non_negative = zero_at_equality = reaches_teacher = ignores_impossible_classes = True
    t2 = True
    oracle = plain(oracle.reverse_kl)


DECLARED = [
    found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, LossLaws) and found.entry is not None
]


def test_every_first_party_entry_is_under_laws() -> None:
    offered = {entry.qualified for entry in kdplug.losses.entries() if entry.dist == "kdplug-logits"}
    assert offered == {laws.entry for laws in DECLARED}


@pytest.mark.parametrize(
    ("laws", "name"),
    [(laws, name) for laws in DECLARED for name in laws.except_for],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_exception_is_needed(laws: type[LossLaws], name: str) -> None:
    unexcepted = type("Unexcepted", (laws,), {"except_for": {}})
    assert name in broken_laws(unexcepted, only=[name])
