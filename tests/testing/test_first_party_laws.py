"""Every first-party entry under the laws of the author's kit, but for those of plugins that do so themselves."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import pytest

from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.registry import REGISTRIES
from kdplug.testing import (
    LayerMapLaws,
    LossLaws,
    ProjectionLaws,
    SchedulerLaws,
    TeacherCombinerLaws,
    broken_laws,
)
from kdplug.testing.law import Laws

PADDED_BELOW = "TextBrewer reads scores at or below pad_below as padding where there is no mask"
NOT_RENORMALIZED = "TextBrewer drops padded keys from the sum and not from the softmax"
OVER_ALL_KEYS = "TextBrewer's softmax runs over padded keys too, unless they hold -inf or nan"
FIRST_TOKEN = "it compares position 0 alone, by definition"

PADDING = "test_padding_changes_nothing"
LONGER = "test_longer_padding_changes_nothing"
FULL = "test_a_mask_that_leaves_nothing_out_changes_nothing"
BEST = "test_no_student_is_better_than_the_teacher_itself"
ORDER = "test_the_order_of_tokens_does_not_matter"


class TestCe(LossLaws):
    entry = "kdplug-presets:ce"
    non_negative = reaches_teacher = ignores_impossible_classes = corrects_confident_mistakes = True
    t2 = False


class TestCeTimesTemperatureSquared(TestCe):
    settings = {"t2": True}
    t2 = True


class TestMse(LossLaws):
    entry = "kdplug-presets:mse"
    non_negative = zero_at_equality = reaches_teacher = corrects_confident_mistakes = True
    t2 = False


class TestHiddenMse(LossLaws):
    entry = "kdplug-presets:hidden_mse"
    non_negative = zero_at_equality = True


class TestCos(LossLaws):
    entry = "kdplug-presets:cos"
    non_negative = zero_at_equality = True


class TestPkd(LossLaws):
    entry = "kdplug-presets:pkd"
    non_negative = zero_at_equality = True
    except_for = {ORDER: FIRST_TOKEN}
    may_differ = (1,)


class TestAttentionMse(LossLaws):
    entry = "kdplug-presets:attention_mse"
    feature = "attention"
    non_negative = zero_at_equality = True
    except_for = {FULL: PADDED_BELOW}


class TestAttentionMseWithoutThreshold(TestAttentionMse):
    settings = {"pad_below": None}
    except_for = {}


class TestAttentionMseSum(TestAttentionMse):
    entry = "kdplug-presets:attention_mse_sum"


class TestAttentionMseSumWithoutThreshold(TestAttentionMseSum):
    settings = {"pad_below": None}
    except_for = {}


class TestAttentionCe(LossLaws):
    entry = "kdplug-presets:attention_ce"
    feature = "attention"
    non_negative = True
    except_for = {FULL: PADDED_BELOW, PADDING: OVER_ALL_KEYS, LONGER: OVER_ALL_KEYS, BEST: NOT_RENORMALIZED}


class TestAttentionCeWithoutThreshold(TestAttentionCe):
    settings = {"pad_below": None}
    except_for = {PADDING: OVER_ALL_KEYS, LONGER: OVER_ALL_KEYS, BEST: NOT_RENORMALIZED}


class TestAttentionCeOfProbabilities(TestAttentionCe):
    settings = {"inputs": "probs"}
    draws = "probabilities"
    except_for = {BEST: NOT_RENORMALIZED}


class TestAttentionCeMean(TestAttentionCe):
    entry = "kdplug-presets:attention_ce_mean"


class TestAttentionCeMeanWithoutThreshold(TestAttentionCeWithoutThreshold):
    entry = "kdplug-presets:attention_ce_mean"


class TestAttentionCeMeanOfProbabilities(TestAttentionCeOfProbabilities):
    entry = "kdplug-presets:attention_ce_mean"


class TestFsp(LossLaws):
    entry = "kdplug-presets:fsp"
    layers = 2
    non_negative = zero_at_equality = True


class TestGram(TestFsp):
    entry = "kdplug-presets:gram"


class TestNst(LossLaws):
    entry = "kdplug-presets:nst"
    layers = 2
    may_differ = (2,)
    non_negative = zero_at_equality = True


class TestMmd(TestNst):
    entry = "kdplug-presets:mmd"


class TestNstOfDifferentWidths(LossLaws):
    entry = "kdplug-presets:nst"
    layers = 2
    teacher_shape = (3, 4, 9)
    non_negative = True


class TestLinear(ProjectionLaws):
    entry = "kdplug-presets:linear"


class TestRelu(ProjectionLaws):
    entry = "kdplug-presets:relu"


class TestTanh(ProjectionLaws):
    entry = "kdplug-presets:tanh"


class TestLinearDecay(SchedulerLaws):
    entry = "kdplug-presets:linear_decay"
    at_start, at_end, direction = 1.0, 0.0, "falling"


class TestLinearGrowth(SchedulerLaws):
    entry = "kdplug-presets:linear_growth"
    at_start, at_end, direction = 0.0, 1.0, "rising"


class TestLinearWarmup(SchedulerLaws):
    entry = "kdplug-presets:linear_warmup"
    settings = {"share": 0.25}
    at_start, at_end, direction = 0.0, 1.0, "rising"


class TestConstant(SchedulerLaws):
    entry = "kdplug-presets:constant"
    keeps_the_mean = True


class TestFlsw(SchedulerLaws):
    entry = "kdplug-presets:flsw"
    settings = {"beta": 1.0, "gamma": 0.5}
    keeps_the_mean = True


class TestFlswWithALargeSpread(TestFlsw):
    settings = {"beta": 1000.0, "gamma": 2.0}
    keeps_the_mean = False


class TestCwsm(SchedulerLaws):
    entry = "kdplug-presets:cwsm"
    settings = {"beta": 1.0}
    keeps_the_mean = True


class TestCwsmWithALargeSpread(TestCwsm):
    settings = {"beta": 1000.0}
    keeps_the_mean = False


class TestMeanLogits(TeacherCombinerLaws):
    entry = "kdplug-presets:mean_logits"
    symmetric = True


class TestMeanProbs(TeacherCombinerLaws):
    entry = "kdplug-presets:mean_probs"
    symmetric = True


class TestWeighted(TeacherCombinerLaws):
    entry = "kdplug-presets:weighted"
    settings = {"weights": [0.5, 3.0, 1.0]}


class TestWeightedWithoutTheFirst(TestWeighted):
    settings = {"weights": [0.0, 1.0, 1.0]}


class TestEntropyGate(TeacherCombinerLaws):
    entry = "kdplug-presets:entropy_gate"
    symmetric = True


class TestSelectByLabel(TeacherCombinerLaws):
    entry = "kdplug-presets:select"
    symmetric = True


class TestSelectOne(TeacherCombinerLaws):
    entry = "kdplug-presets:select"
    settings = {"index": 1}


class TestUniform(LayerMapLaws):
    entry = "kdplug-presets:uniform"
    reaches_the_top = covers_the_student = True


class TestUniformRounded(TestUniform):
    settings = {"round": True, "embeddings": True}


class TestSkip(LayerMapLaws):
    entry = "kdplug-presets:skip"


class TestSkipRounded(LayerMapLaws):
    entry = "kdplug-presets:skip"
    settings = {"round": True, "top": True}
    reaches_the_top = covers_the_student = True


class TestLast(LayerMapLaws):
    entry = "kdplug-presets:last"


class TestLastWithTheTop(LayerMapLaws):
    entry = "kdplug-presets:last"
    settings = {"top": True}
    reaches_the_top = covers_the_student = True


class TestEmbAndLast(LayerMapLaws):
    entry = "kdplug-presets:emb_and_last"
    reaches_the_top = True


DECLARED = [
    found for found in globals().values() if isinstance(found, type) and issubclass(found, Laws) and found.entry
]

WITH_THE_PLUGIN = {
    "kdplug-logits": ("losses", "cache_codecs"),
    "kdplug-presets": ("balancers", "teacher_updates"),
    "kdplug-tasks": ("tasks",),
    "kdplug-vision": ("losses", "projections"),
}
"""Distributions whose own tests put every entry of these kinds under laws, and say so in a test of the same name as below."""


def test_every_first_party_entry_is_under_laws() -> None:
    offered = {
        entry.qualified
        for registry in REGISTRIES.values()
        for entry in registry.entries()
        if entry.dist in FIRST_PARTY and entry.kind.plural not in WITH_THE_PLUGIN.get(entry.dist, ())
    }
    assert offered == {laws.entry for laws in DECLARED}
    assert len(offered) >= 30


@pytest.mark.parametrize(
    ("laws", "name"),
    [(laws, name) for laws in DECLARED for name in laws.except_for],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_exception_is_needed(laws: type[Laws], name: str) -> None:
    unexcepted = type("Unexcepted", (laws,), {"except_for": {}})
    assert name in broken_laws(unexcepted, only=[name])
