"""Every entry under the laws of the author's kit, each against its plain formula."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import logits_oracle as oracle
import pytest

import kdplug
from kdplug.testing import LossLaws, broken_laws, excluded_laws

DETACHED = "its weight is a number of each item that no gradient runs through, as the authors have it"
BEYOND = "it rewards a student that is surer than the teacher, by definition"

BEST = "test_no_student_is_better_than_the_teacher_itself"
DIFFERENCES = "test_gradient_agrees_with_finite_differences"
SPLIT = "test_any_split_of_the_batch_gives_the_whole"
CUT = "test_a_sum_over_items_may_be_cut_between_any_two"

RENAMED = {"student": "student_logits", "teacher": "teacher_logits"}


def plain(formula: Callable[..., Any], **settings: Any) -> Any:
    """A formula of the oracle with settings, asking for its inputs by the names that a loss gives them."""
    inputs = [name for name in inspect.signature(formula).parameters if name in (*RENAMED, "temperature", "labels")]

    def renamed(*values: Any) -> Any:
        return formula(*values, **settings)

    renamed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(RENAMED.get(name, name), inspect.Parameter.POSITIONAL_ONLY) for name in inputs]
    )
    return staticmethod(renamed)


class Divergence(LossLaws):
    """What holds for every divergence between softened distributions."""

    non_negative = zero_at_equality = reaches_teacher = ignores_impossible_classes = True
    t2 = True


class TestKl(Divergence):
    entry = "kdplug-logits:kl"
    corrects_confident_mistakes = True
    oracle = plain(oracle.kl)


class TestKlWithoutT2(TestKl):
    settings = {"t2": False}
    t2 = False
    oracle = None


class TestReverseKl(Divergence):
    entry = "kdplug-logits:reverse_kl"
    oracle = plain(oracle.reverse_kl)


class TestJsd(Divergence):
    entry = "kdplug-logits:jsd"
    oracle = plain(oracle.jsd)


class TestJsdTowardsTheTeacher(TestJsd):
    settings = {"beta": 0.9}
    oracle = plain(oracle.jsd, beta=0.9)


class TestNormalizedJsd(TestJsd):
    settings = {"beta": 0.1, "normalize": True}
    oracle = staticmethod(
        lambda student_logits, teacher_logits, temperature: (
            oracle.jsd(student_logits, teacher_logits, temperature, beta=0.1) / 0.1
        )
    )


class TestJsdAtZero(TestJsd):
    settings = {"beta": 0}
    oracle = plain(oracle.kl)


class TestJsdAtOne(TestJsd):
    settings = {"beta": 1}
    oracle = plain(oracle.reverse_kl)


class TestSkewKl(Divergence):
    entry = "kdplug-logits:skew_kl"
    oracle = plain(oracle.skew_kl)


class TestUnskewedKl(TestSkewKl):
    settings = {"skew": 0}
    oracle = plain(oracle.kl)


class TestSkewReverseKl(Divergence):
    entry = "kdplug-logits:skew_reverse_kl"
    oracle = plain(oracle.skew_reverse_kl)


class TestUnskewedReverseKl(TestSkewReverseKl):
    settings = {"skew": 0}
    oracle = plain(oracle.reverse_kl)


class TestTvd(Divergence):
    entry = "kdplug-logits:tvd"
    reaches_teacher = False
    oracle = plain(oracle.tvd)


class TestAdaptiveKl(Divergence):
    entry = "kdplug-logits:adaptive_kl"
    reaches_teacher = False
    oracle = plain(oracle.adaptive_kl)


class TestAdaptiveKlOfAWideHead(TestAdaptiveKl):
    settings = {"mass": 0.75}
    oracle = plain(oracle.adaptive_kl, mass=0.75)
    except_for = {DIFFERENCES: DETACHED}


class TestAlphaBeta(Divergence):
    entry = "kdplug-logits:alpha_beta"
    oracle = plain(oracle.alpha_beta)


class TestAlphaBetaAtOneAndZero(TestAlphaBeta):
    settings = {"alpha": 1, "beta": 0}
    oracle = plain(oracle.kl)


class TestAlphaBetaAtZeroAndOne(TestAlphaBeta):
    settings = {"alpha": 0, "beta": 1}
    oracle = plain(oracle.reverse_kl)


class TestDkd(Divergence):
    entry = "kdplug-logits:dkd"
    oracle = plain(oracle.dkd)


class TestNkd(LossLaws):
    entry = "kdplug-logits:nkd"
    non_negative = ignores_impossible_classes = True
    oracle = plain(oracle.nkd)


class TestWsld(LossLaws):
    entry = "kdplug-logits:wsld"
    non_negative = ignores_impossible_classes = True
    oracle = plain(oracle.wsld)
    except_for = {BEST: BEYOND, DIFFERENCES: DETACHED}


class TestDist(LossLaws):
    entry = "kdplug-logits:dist"
    non_negative = zero_at_equality = t2 = True
    sums = False
    oracle = plain(oracle.dist)


class TestDistOverClassesAlone(TestDist):
    settings = {"gamma": 0, "beta": 2}
    sums = True
    oracle = plain(oracle.dist, gamma=0, beta=2)


class TestLogitStd(LossLaws):
    entry = "kdplug-logits:logit_std"
    non_negative = zero_at_equality = True
    settings = {"eps": 1e-30}
    oracle = plain(oracle.logit_std)


class TestLogitStdAsTheAuthorsHaveIt(TestLogitStd):
    settings = {}
    oracle = None


class TestBce(LossLaws):
    entry = "kdplug-logits:bce"
    non_negative = reaches_teacher = ignores_impossible_classes = t2 = True
    oracle = plain(oracle.bce)


class TestRegression(LossLaws):
    entry = "kdplug-logits:regression"
    non_negative = zero_at_equality = reaches_teacher = corrects_confident_mistakes = True
    oracle = plain(oracle.regression)


class TestRegressionToOneNumber(TestRegression):
    shape = (12, 1)
    large_shape = (70_000, 1)
    corrects_confident_mistakes = False


class TestRanking(LossLaws):
    entry = "kdplug-logits:ranking"
    non_negative = corrects_confident_mistakes = True
    oracle = plain(oracle.ranking)


class TestRankingByHinge(TestRanking):
    settings = {"form": "hinge", "margin": 0.5}
    oracle = plain(oracle.ranking, form="hinge", margin=0.5)


class TestTopk(Divergence):
    entry = "kdplug-logits:topk"
    settings = {"k": 2}
    reaches_teacher = False
    corrects_confident_mistakes = True
    oracle = plain(oracle.topk, k=2)


class TestTopkOfAll(TestTopk):
    settings = {}
    reaches_teacher = True
    oracle = plain(oracle.kl)


class TestTopkRenormalized(TestTopk):
    settings = {"k": 2, "rest": "renorm_teacher"}
    zero_at_equality = False
    oracle = plain(oracle.topk, k=2, rest="renorm_teacher")


class TestTopkAlone(TestTopk):
    settings = {"k": 2, "rest": "zero"}
    zero_at_equality = False
    non_negative = False
    oracle = plain(oracle.topk, k=2, rest="zero")


class TestSampled(LossLaws):
    entry = "kdplug-logits:sampled"
    settings = {"draws": 20}
    non_negative = t2 = True


class TestUld(LossLaws):
    entry = "kdplug-logits:uld"
    non_negative = zero_at_equality = ignores_impossible_classes = t2 = True
    may_differ = (-1,)
    oracle = plain(oracle.uld)


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


@pytest.mark.parametrize("laws", DECLARED)
def test_what_returns_a_sum_is_one_however_it_is_cut_unless_it_is_drawn(laws: type[LossLaws]) -> None:
    for law in (SPLIT, CUT):
        assert law not in laws.except_for
        assert excluded_laws(laws).get(law, "random = True") == "random = True"
