"""Which laws a class of laws has."""
# a law class is a declaration, as an author writes it

from __future__ import annotations

import functools
import random
import re
from typing import Any

import pytest
import torch
from testing.fact_mutant import DroppedLaws, Scaled, dropped
from testing.logit_mutant import arguments_swapped_quietly
from testing.specimen import CorrelationLaws, HiddenLaws, KlLaws, Vid, correlation, hidden_mse, kl, laws_of
from testing.task_model import Sums, SumsLaws
from torch import Tensor

import kdplug
from kdplug.errors import BrokenEntryError, PluginError, SignatureError, UnknownEntryError
from kdplug.testing import LossLaws, broken_laws, excluded_laws, law_names, plugin_site
from kdplug.testing.law import Laws


def test_a_base_without_an_entry_has_no_class_of_its_own() -> None:
    assert not LossLaws.__name__.startswith("Test")
    assert LossLaws.entry is None


def test_laws_on_masks_are_there_only_where_the_loss_asks_for_a_mask() -> None:
    masked, unmasked = (laws_of(LossLaws, loss) for loss in (hidden_mse, Vid))
    assert "test_an_empty_mask_gives_zero" in law_names(masked)
    assert not [name for name in law_names(unmasked) if "mask" in name or "padding" in name]


def test_laws_on_logits_are_there_only_for_losses_on_logits() -> None:
    assert "test_logits_of_ten_thousand_stay_finite" in law_names(laws_of(LossLaws, kl))
    assert not [name for name in law_names(laws_of(LossLaws, hidden_mse)) if "logit" in name or "temperature" in name]


def test_laws_on_modules_are_there_only_for_classes() -> None:
    assert "test_every_parameter_is_trained" in law_names(laws_of(LossLaws, Vid))
    assert "test_every_parameter_is_trained" not in law_names(laws_of(LossLaws, kl))


def test_a_law_that_does_not_apply_is_none_and_so_not_collected() -> None:
    assert laws_of(LossLaws, kl).test_every_parameter_is_trained is None


def test_a_subclass_gets_back_what_its_parent_left_out() -> None:
    parent = laws_of(LossLaws, kl)
    child = type("Child", (parent,), {"zero_at_equality": True})
    law = "test_it_is_zero_where_student_equals_teacher"
    assert (law in law_names(parent), law in law_names(child)) == (False, True)


def test_an_exception_takes_a_law_out() -> None:
    laws = laws_of(KlLaws, kl, except_for={"test_temperature_is_used": "a reason"})
    assert "test_temperature_is_used" not in law_names(laws)


def test_a_fact_takes_laws_out_by_name_and_a_skipped_law_says_which() -> None:
    laws = laws_of(DroppedLaws, dropped)
    assert excluded_laws(laws)["test_the_order_of_examples_does_not_matter"] == "random = True"
    assert not set(excluded_laws(laws)) & set(law_names(laws))
    with pytest.raises(pytest.skip.Exception, match="local:dropped states random = True, which excludes this test"):
        laws().test_the_order_of_examples_does_not_matter()
    assert broken_laws(laws, only=["test_the_order_of_examples_does_not_matter"]) == {}


def test_a_subclass_gets_back_what_a_fact_of_its_parents_entry_excluded() -> None:
    child = type("Child", (laws_of(DroppedLaws, dropped),), {"entry": staticmethod(Vid)})
    assert excluded_laws(child) == {}
    assert "test_the_order_of_examples_does_not_matter" in law_names(child)


def test_a_fact_that_is_copied_or_overridden_excludes_nothing() -> None:
    @functools.wraps(dropped)
    def copied(student_features, teacher_features, draw_seed):
        return dropped(student_features, teacher_features, draw_seed)

    class Overridden(Scaled):
        def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
            return super().forward(student_features, teacher_features).value

    assert excluded_laws(laws_of(LossLaws, copied)) == excluded_laws(laws_of(LossLaws, Overridden)) == {}
    assert "own_parameters = True" in excluded_laws(laws_of(LossLaws, Scaled)).values()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"randon": True}, "no fact 'randon'. Did you mean 'random'?"),
        ({"random": 1}, "states random = 1, which must be True or False"),
        ({"integer_inputs": "labels"}, "must be a tuple of input names"),
        ({"shapes": 3}, "must be a shape as a tuple, the name of a usual shape"),
    ],
)
def test_a_wrong_fact_is_an_error(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(SignatureError, match=re.escape(message)):
        kdplug.facts(**stated)


def test_a_law_on_many_items_is_there_only_for_sums_and_declared_means() -> None:
    law = "test_a_batch_of_many_items_is_counted"
    assert law in law_names(laws_of(LossLaws, hidden_mse))
    assert law in law_names(laws_of(LossLaws, kdplug.mean_over_items(lambda student_logits, teacher_logits: None)))
    assert law not in law_names(laws_of(LossLaws, correlation))


def test_an_exception_to_a_law_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(PluginError, match="Did you mean 'test_temperature_is_used'"):
        laws_of(KlLaws, kl, except_for={"test_temperature_is_usd": "a reason"})


def test_a_misspelt_declaration_of_a_suite_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"Made: there is no declaration 'nonnegative'.* Did you mean 'non_negative'"):
        type("Made", (KlLaws,), {"entry": staticmethod(kl), "nonnegative": True})
    with pytest.raises(PluginError, match=r"no declaration 'oracel'.* Did you mean 'oracle'"):
        type("Made", (KlLaws,), {"entry": staticmethod(kl), "oracel": staticmethod(kl)})


def test_a_declaration_that_no_law_can_test_is_an_error() -> None:
    class Wider(Scaled):
        def __init__(self, in_dim: int, out_dim: int) -> None:
            super().__init__()

        def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
            return student_features.mean()

    with pytest.raises(PluginError, match="t2 has no effect, since the loss does not request temperature"):
        laws_of(LossLaws, correlation, t2=True)
    with pytest.raises(PluginError, match=r"zero_at_equality cannot hold.*\[3, 4, 6\].*\[3, 4, 9\]"):
        laws_of(LossLaws, Wider, shape="relations", zero_at_equality=True)
    laws_of(LossLaws, Wider, zero_at_equality=True)


def test_the_advice_after_a_question_is_a_sentence_of_its_own() -> None:
    law = "test_a_confident_mistake_is_corrected"
    message = broken_laws(laws_of(KlLaws, arguments_swapped_quietly), only=[law])[law]
    assert "swapped? Apply log_softmax" in message


def test_an_author_may_write_a_law_and_strike_one_out() -> None:
    laws = laws_of(KlLaws, kl, test_temperature_is_used=None, test_mine=lambda self: None)
    assert "test_mine" in law_names(laws)
    assert "test_temperature_is_used" not in law_names(laws)


def test_an_entry_that_does_not_exist_leaves_one_law_that_says_so() -> None:
    laws = laws_of(LossLaws, "hiden_mse")
    assert law_names(laws) == ["test_it_can_be_built"]
    with pytest.raises(UnknownEntryError, match="Did you mean 'hidden_mse'"):
        laws().test_it_can_be_built()


def test_an_entry_that_fails_to_import_leaves_one_law_that_says_so() -> None:
    files = {"broken_one.py": "import a_module_that_nobody_has"}
    with plugin_site("kdplug-broken", entry_points={"kdplug.losses": {"x": "broken_one:x"}}, files=files):
        laws = laws_of(LossLaws, "kdplug-broken:x")
    with pytest.raises(BrokenEntryError, match="a_module_that_nobody_has"):
        laws().test_it_can_be_built()


def test_a_bare_name_a_qualified_one_and_a_callable_are_entries() -> None:
    entries = ("hidden_mse", "kdplug-presets:hidden_mse", kdplug.losses["hidden_mse"])
    assert len({tuple(law_names(laws_of(LossLaws, entry))) for entry in entries}) == 1


def test_a_missing_setting_breaks_the_first_law() -> None:
    def needs_alpha(student_logits: Tensor, teacher_logits: Tensor, *, alpha: float) -> Tensor:
        """A loss."""
        return correlation(student_logits, teacher_logits) * alpha

    assert "alpha: is required" in broken_laws(laws_of(CorrelationLaws, needs_alpha))["test_it_can_be_built"]
    assert broken_laws(laws_of(CorrelationLaws, needs_alpha, settings={"alpha": 0.5})) == {}


def test_a_loss_sum_that_is_not_announced_is_named() -> None:
    def silent(student_logits, teacher_logits, temperature):
        """A loss."""
        return kl(student_logits, teacher_logits, temperature, None)

    found = broken_laws(laws_of(LossLaws, silent))
    words = "returned an undeclared LossSum: annotate '-> LossSum', or declare sums = True"
    assert found == {"test_it_returns_a_finite_scalar": words}


def test_laws_leave_every_global_generator_where_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    broken_laws(laws_of(HiddenLaws, hidden_mse))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("laws", [KlLaws, HiddenLaws, CorrelationLaws])
def test_every_law_names_the_defect_it_was_written_for(laws: type[LossLaws]) -> None:
    every = [getattr(laws, name) for name in dir(laws) if name.startswith("test_")]
    assert all("Catches " in (law.__doc__ or "") for law in every)


class Cut:
    """Squared differences between two bounds."""

    def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
        if low >= high:
            raise kdplug.SettingError(f"must be above low, {low}, got {high}", field="high")

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        return hidden_mse(student_features, teacher_features, None).value


class Crossed(Cut):
    """Its defaults do not go together."""

    def __init__(self, *, low: float = 2.0, high: float = 1.0) -> None:
        super().__init__(low=low, high=high)


def test_a_default_has_to_go_with_the_other_defaults_and_not_with_what_a_test_declares() -> None:
    law, declared = "test_its_settings_have_a_schema_and_valid_defaults", {"low": -2.0, "high": -1.0}
    right, wrong = (laws_of(HiddenLaws, one, settings=declared) for one in (Cut, Crossed))
    assert broken_laws(right, only=[law]) == {}
    assert "must be above low, 2.0, got 1.0" in broken_laws(wrong, only=[law])[law]


class Unlabelled(Sums):
    """Sums, of which some have no number yet."""

    def collate(self, examples: Any) -> Any:
        return {"input": torch.stack(examples), "target": torch.full((len(examples),), torch.nan)}

    def student_adaptor(self, batch: Any, outputs: Any) -> Any:
        return super().student_adaptor((batch["input"],), outputs)


def test_examples_without_a_label_are_the_same_though_nan_differs_from_nan() -> None:
    law = "test_examples_are_the_same_in_every_run"
    assert broken_laws(laws_of(SumsLaws, Unlabelled), only=[law]) == {}


def test_laws_of_no_kind_say_from_what_to_derive() -> None:
    class Bare(Laws):
        entry = "ce"

    assert "Bare has no kind. Derive it from the test class of a kind" in broken_laws(Bare)["test_it_can_be_built"]
