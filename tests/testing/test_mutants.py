"""Known defects of other toolkits, planted one by one: a law, by name, catches each; the right version keeps every law."""

from __future__ import annotations

from typing import Any

import pytest
from testing import (
    balancer_mutant,
    closed_form_mutant,
    coarse_mutant,
    codec_item_mutant,
    codec_mutant,
    codec_value_mutant,
    combiner_mutant,
    evaluator_mutant,
    fact_mutant,
    feature_mutant,
    layer_map_mutant,
    logit_mutant,
    module_mutant,
    projection_mutant,
    scheduler_mutant,
    sequence_mutant,
    task_mutant,
    task_option_mutant,
    task_prediction_mutant,
    teacher_mutant,
    transform_mutant,
    trap_mutant,
)
from testing.coarse_mutant import CoarseLaws, plain_divergence
from testing.codec_model import Drawn, DrawnLaws, Factors, FactorsLaws, Likely, LikelyLaws, Rounded, RoundedLaws
from testing.evaluator_mutant import Norms, SumsEvaluatorLaws
from testing.fact_mutant import (
    CodeLaws,
    DroppedLaws,
    HardLaws,
    Scaled,
    ScaledLaws,
    SimilarityLaws,
    codes,
    dropped,
    hard,
    scores,
    similarity,
)
from testing.feature_mutant import WeighedLaws, weighed
from testing.mutant import MUTANTS
from testing.sequence_mutant import SequenceLaws, mean_slopes, running_kl, slopes
from testing.specimen import (
    AffineLaws,
    Bank,
    BankLaws,
    CorrelationLaws,
    FallingLaws,
    HiddenLaws,
    Inverse,
    InverseLaws,
    KlLaws,
    LearnedLaws,
    LearnedTemperature,
    NearestLaws,
    SureLaws,
    Vid,
    VidLaws,
    WarmthLaws,
    affine,
    by_entropy,
    correlation,
    cosine,
    hidden_mse,
    kl,
    laws_of,
    nearest_depth,
    sure,
)
from testing.task_model import Bilingual, Generous, Regressed, Sums, SumsLaws
from testing.teacher_mutant import AverageLaws, Linear, LinearLaws, average
from testing.transform_mutant import Low, LowLaws
from testing.trap_mutant import (
    Embedded,
    EmbeddedLaws,
    ExactHiddenLaws,
    ExactKlLaws,
    LayerLaws,
    MaskedLaws,
    NormalizedLaws,
    Projected,
    ProjectedLaws,
    Remembering,
    RememberingLaws,
    Shared,
    SharedLaws,
    TargetLaws,
    covered,
    layer_by_layer,
    normalized,
    targets,
)
from torch import Tensor

from kdplug import LossSum
from kdplug.testing import (
    BalancerLaws,
    CodecLaws,
    EvaluatorLaws,
    LayerMapLaws,
    LossLaws,
    ProjectionLaws,
    SchedulerLaws,
    StudentTransformLaws,
    TaskLaws,
    TeacherCombinerLaws,
    TeacherLaws,
    TeacherUpdateLaws,
    broken_laws,
    law_names,
)
from kdplug.testing.law import Laws

PLANTED_IN = (
    balancer_mutant,
    closed_form_mutant,
    coarse_mutant,
    codec_item_mutant,
    codec_mutant,
    codec_value_mutant,
    combiner_mutant,
    evaluator_mutant,
    fact_mutant,
    feature_mutant,
    layer_map_mutant,
    logit_mutant,
    module_mutant,
    projection_mutant,
    scheduler_mutant,
    sequence_mutant,
    task_mutant,
    task_option_mutant,
    task_prediction_mutant,
    teacher_mutant,
    transform_mutant,
    trap_mutant,
)
BASES = (
    BalancerLaws,
    CodecLaws,
    EvaluatorLaws,
    LayerMapLaws,
    LossLaws,
    ProjectionLaws,
    SchedulerLaws,
    StudentTransformLaws,
    TaskLaws,
    TeacherCombinerLaws,
    TeacherLaws,
    TeacherUpdateLaws,
)

RIGHT = {
    "plain_divergence": (CoarseLaws, plain_divergence),
    "slopes": (SequenceLaws, slopes),
    "mean_slopes": (SequenceLaws, mean_slopes),
    "running_kl": (SequenceLaws, running_kl),
    "kl": (KlLaws, kl),
    "hidden_mse": (HiddenLaws, hidden_mse),
    "correlation": (CorrelationLaws, correlation),
    "similarity": (SimilarityLaws, similarity),
    "dropped": (DroppedLaws, dropped),
    "scores": (DroppedLaws, scores),
    "hard": (HardLaws, hard),
    "codes": (CodeLaws, codes),
    "Scaled": (ScaledLaws, Scaled),
    "kl_by_its_formula": (ExactKlLaws, kl),
    "hidden_mse_by_its_formula": (ExactHiddenLaws, hidden_mse),
    "targets": (TargetLaws, targets),
    "layer_by_layer": (LayerLaws, layer_by_layer),
    "Projected": (ProjectedLaws, Projected),
    "Shared": (SharedLaws, Shared),
    "Embedded": (EmbeddedLaws, Embedded),
    "normalized": (NormalizedLaws, normalized),
    "covered": (MaskedLaws, covered),
    "Vid": (VidLaws, Vid),
    "Bank": (BankLaws, Bank),
    "Remembering": (RememberingLaws, Remembering),
    "weighed": (WeighedLaws, weighed),
    "affine": (AffineLaws, affine),
    "cosine": (FallingLaws, cosine),
    "by_entropy": (WarmthLaws, by_entropy),
    "LearnedTemperature": (LearnedLaws, LearnedTemperature),
    "sure": (SureLaws, sure),
    "Inverse": (InverseLaws, Inverse),
    "nearest_depth": (NearestLaws, nearest_depth),
    "Sums": (SumsLaws, Sums),
    "Generous": (SumsLaws, Generous),
    "Regressed": (SumsLaws, Regressed),
    "Bilingual": (SumsLaws, Bilingual),
    "Rounded": (RoundedLaws, Rounded),
    "Likely": (LikelyLaws, Likely),
    "Drawn": (DrawnLaws, Drawn),
    "Factors": (FactorsLaws, Factors),
    "average": (AverageLaws, average),
    "Linear": (LinearLaws, Linear),
    "Low": (LowLaws, Low),
    "Norms": (SumsEvaluatorLaws, Norms),
}


@pytest.mark.parametrize("defect", MUTANTS)
def test_a_law_catches(defect: str) -> None:
    base, target, law, words = MUTANTS[defect]
    laws = laws_of(base, target)
    assert law in law_names(laws)
    assert words in broken_laws(laws, only=[law]).get(law, "nothing: the law holds")


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_version_keeps_every_law(name: str) -> None:
    base, target = RIGHT[name]
    assert broken_laws(laws_of(base, target)) == {}


def test_an_oracle_catches_what_no_declared_property_does() -> None:
    def oracle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
        return (student_features - teacher_features).square().mean()

    def halved(student_features: Tensor, teacher_features: Tensor, mask: Any) -> LossSum:
        """Half the squared error."""
        total, count = hidden_mse(student_features, teacher_features, mask)
        return LossSum(total / 2, count)

    assert (
        "its oracle gives" in broken_laws(laws_of(HiddenLaws, halved, oracle=oracle))["test_it_agrees_with_its_oracle"]
    )


def test_a_loss_without_a_docstring_is_caught() -> None:
    def bare(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return correlation(student_logits, teacher_logits)

    assert "has no docstring" in broken_laws(laws_of(CorrelationLaws, bare))["test_it_has_a_docstring"]


def test_every_file_of_mutants_is_planted() -> None:
    assert {mutant.target.__module__ for mutant in MUTANTS.values()} == {module.__name__ for module in PLANTED_IN}


@pytest.mark.parametrize("base", BASES)
def test_every_law_of_a_kind_catches_a_mutant(base: type[Laws]) -> None:
    caught = {mutant.law for mutant in MUTANTS.values() if issubclass(mutant.laws, base)}
    own = {name for name in dir(base) if name.startswith("test_")} - set(dir(Laws))
    assert own - caught == set()
