"""The advice of a broken law, followed for each law of each kind: the law then holds."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from pydantic import Field
from testing import (  # each fills FOLLOWED
    codec_advice,  # noqa: F401
    combiner_advice,  # noqa: F401
    evaluator_advice,  # noqa: F401
    layer_map_advice,  # noqa: F401
    task_advice,  # noqa: F401
    transform_advice,  # noqa: F401
)
from testing.advice import FOLLOWED, WORDS
from testing.closed_form_mutant import ClosedLaws, plain_kl, right_rows
from testing.codec_model import Rounded
from testing.logit_mutant import DrawLaws, divergence_declared_for_numbers, root_declared_a_mean
from testing.mutant import MUTANTS
from testing.specimen import check, hidden_mse, laws_of
from testing.test_mutants import RIGHT
from torch import Tensor

from kdplug import LossSum, closed_form, facts
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
    broken_laws,
    excluded_laws,
    law_names,
)
from kdplug.testing.law import Laws

BASES = (BalancerLaws, LossLaws, ProjectionLaws, SchedulerLaws)
OTHER_BASES = (CodecLaws, EvaluatorLaws, LayerMapLaws, StudentTransformLaws, TaskLaws, TeacherCombinerLaws)
"""Kinds whose advice is followed for each mutant, in the files ``*_advice.py``."""


@closed_form(right_rows)
def closed(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """KL divergence with the gradient of its formula."""
    return plain_kl(student_logits, teacher_logits, temperature)


@facts(random=True)
def drawn(student_logits: Tensor, teacher_logits: Tensor, draw_seed: int) -> LossSum:
    """Squared error of the classes that the seed draws."""
    check(student_logits, teacher_logits)
    generator = torch.Generator(student_logits.device).manual_seed(draw_seed)
    kept = torch.rand(student_logits.shape, generator=generator) < 0.5
    error = ((student_logits - teacher_logits.detach()) * kept).square().sum(-1)
    return LossSum(error.sum(), error.numel())


def without(attribute: str, loss: Any) -> Any:
    """The same function without a declaration."""

    def undeclared(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Declares nothing."""
        return loss(student_logits, teacher_logits)  # type: ignore[no-any-return]

    assert hasattr(loss, attribute)
    return undeclared


MENDED: dict[str, tuple[type[Laws], Any]] = {
    **{name: (ClosedLaws, closed) for name in dir(LossLaws) if name.startswith("test_its_closed_form")},
    "test_its_draws_follow_the_draw_seed": (DrawLaws, drawn),
    "test_a_declared_mean_or_sum_is_one": (LossLaws, without("mean_over_items", root_declared_a_mean)),
    "test_a_single_number_gets_a_gradient": (LossLaws, without("takes_numbers", divergence_declared_for_numbers)),
}
"""Losses for which the advice was followed, where no right version has the same laws as the wrong one."""

ADVICE = {
    "test_a_batch_of_many_items_is_counted": "Compute in the precision of the inputs, including counts",
    "test_a_declared_mean_or_sum_is_one": "Remove the declaration",
    "test_a_declared_mean_or_sum_is_one_of_sequences": "Return a LossSum, or remove the declaration",
    "test_a_temperature_per_place_gets_its_gradient": "Detach the teacher's logits before they are divided",
    "test_a_loss_that_says_it_compares_items_does": "Remove this fact",
    "test_a_loss_that_says_it_has_parameters_does": "Remove this fact",
    "test_a_loss_that_says_it_ignores_the_teacher_does": "Remove this fact",
    "test_a_loss_that_says_it_takes_scores_needs_to": "Remove this fact",
    "test_a_loaded_state_gives_the_same_temperature": "keep all state in buffers",
    "test_a_single_number_gets_a_gradient": "Remove the declaration",
    "test_a_sum_over_items_may_be_cut_between_any_two": "return a scalar",
    "test_a_trained_temperature_gets_its_gradient": "Detach the teacher's logits before they are divided",
    "test_any_split_of_the_batch_gives_the_whole": "Return LossSum(total, count) with the undivided sum over items",
    "test_float32_agrees_with_float64": "Compute in the precision of the inputs",
    "test_gradient_agrees_with_finite_differences": "Remove detach()",
    "test_gradient_never_reaches_the_teacher": "detach the teacher's inputs (teacher_logits.detach())",
    "test_it_agrees_with_its_oracle": "Compare divisors and powers of the temperature",
    "test_it_draws_if_it_says_so_and_not_otherwise": "State random = True in the class, or with @kdplug.facts",
    "test_it_is_a_module_whose_tensors_are_registered": "Register it in __init__ as an nn.Parameter or a buffer",
    "test_it_returns_a_finite_weight_for_each_term": "must return a tensor with a weight for each of the 3 terms",
    "test_its_state_is_in_buffers": "call register_buffer",
    "test_it_returns_a_finite_scalar": "a loss must return a scalar tensor or a LossSum",
    "test_it_trains_its_parameters_alone": "Register it in __init__ as an nn.Parameter",
    "test_its_attributes_are_read": "Did you mean 'own_parameters'? Otherwise rename it",
    "test_its_parameters_are_trained": "remove detach(), item() and torch.no_grad()",
    "test_on_categories_its_gradient_points_where_that_on_classes_does": "Remove the declaration",
    "test_padding_that_is_not_finite_does_not_spread": "select with where instead of multiplying",
    "test_shapes_that_do_not_fit_are_an_error": "Check the shapes and raise a ShapeError",
    "test_the_temperature_carries_no_gradient": "detach the logits, or compute the temperature under torch.no_grad()",
    "test_the_weight_is_a_finite_number_throughout": "a weight must be a finite Python number",
    "test_the_whole_numbers_that_it_says_it_takes_are_read": "Name inputs of the loss",
    "test_two_projections_share_nothing": "create new ones at each call",
}
"""What the message itself advises, for laws without a sentence of advice of their own."""


def laws_to_try(bases: tuple[type[Laws], ...] = BASES) -> list[tuple[type[Laws], str]]:
    own = {base: {name for name in dir(base) if name.startswith("test_")} - set(dir(Laws)) for base in bases}
    return [(base, law) for base, names in own.items() for law in sorted(names)]


def mended(laws: type[Laws], law: str) -> tuple[type[Laws], Any]:
    if law in MENDED and issubclass(laws, LossLaws):
        return MENDED[law]
    found = [pair for pair in RIGHT.values() if pair[0] is laws]
    return found[0] if found else (laws, hidden_mse)


@pytest.mark.parametrize(("base", "law"), laws_to_try())
def test_a_law_says_what_to_change_and_holds_once_that_is_done(base: type[Laws], law: str) -> None:
    wrong = [one for one in MUTANTS.values() if one.law == law and issubclass(one.laws, base)]
    message = broken_laws(laws_of(wrong[0].laws, wrong[0].target), only=[law])[law]
    advice = getattr(base, law).__dict__.get("advice") or ADVICE[law]
    assert advice in message
    laws = laws_of(*mended(wrong[0].laws, law))
    assert law not in broken_laws(laws, only={law} & {*law_names(laws)})
    assert law in {*law_names(laws), *excluded_laws(laws)} or "emove" in advice


class Low(Rounded):
    """Codes above a lowest logit."""

    def __init__(self, *, low: float = float("nan")) -> None:
        """Nothing to keep."""


class LowOrNone(Rounded):
    """Codes above a lowest logit, if there is one."""

    def __init__(self, *, low: float | None = None) -> None:
        """Nothing to keep."""


class SixteenBits(Rounded):
    """Codes of up to 8 bits."""

    def __init__(self, *, bits: Annotated[int, Field(le=8)] = 16) -> None:
        """Nothing to keep."""


class EightBits(Rounded):
    """Codes of up to 8 bits."""

    def __init__(self, *, bits: Annotated[int, Field(le=8)] = 8) -> None:
        """Nothing to keep."""


class UpToSixteenBits(Rounded):
    """Codes of up to 16 bits."""

    def __init__(self, *, bits: Annotated[int, Field(le=16)] = 16) -> None:
        """Nothing to keep."""


OF_EVERY_KIND = {
    "test_it_can_be_built": ("None instead of nan", Low, [LowOrNone]),
    "test_its_settings_have_a_schema_and_valid_defaults": (
        "Change it or its bounds",
        SixteenBits,
        [EightBits, UpToSixteenBits],
    ),
    "test_it_has_a_docstring": ("Write one", type("Undescribed", (Rounded,), {}), [Rounded]),
}
"""Laws of every kind: words of their advice, a codec that breaks them, and the codecs that follow it."""


@pytest.mark.parametrize("law", [name for name in dir(Laws) if name.startswith("test_")])
def test_a_law_of_every_kind_says_what_to_change_and_holds_once_that_is_done(law: str) -> None:
    words, wrong, ways = OF_EVERY_KIND[law]
    assert words in broken_laws(laws_of(CodecLaws, wrong), only=[law])[law]
    for way in ways:
        assert broken_laws(laws_of(CodecLaws, way)) == {}


@pytest.mark.parametrize("name", WORDS)
def test_a_law_says_what_to_change_in_a_mutant_and_holds_in_each_way_that_it_is_done(name: str) -> None:
    base, target, law, _ = MUTANTS[name]
    message = broken_laws(laws_of(base, target), only=[law])[law]
    assert WORDS[name] in message
    for way in FOLLOWED[name]:
        laws = way if isinstance(way, type) and issubclass(way, Laws) else laws_of(base, way)
        applies = law in law_names(laws)
        assert broken_laws(laws, only=[law] if applies else None) == {}
        assert applies or "eclare" in WORDS[name]


@pytest.mark.parametrize(("base", "law"), laws_to_try(OTHER_BASES))
def test_every_law_and_every_mutant_of_it_has_advice_that_is_followed(base: type[Laws], law: str) -> None:
    wrong = {name for name, one in MUTANTS.items() if one.law == law and issubclass(one.laws, base)}
    assert wrong
    assert wrong - set(WORDS) == set()
    assert all(FOLLOWED[name] for name in wrong)
