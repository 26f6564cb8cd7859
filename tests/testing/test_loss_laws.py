"""Losses of other shapes than the default, and losses with labels."""

from __future__ import annotations

import pytest
import torch
from testing.specimen import at_least_float32, check, correlation, divergence, laws_of, tempered
from torch import Tensor, nn
from torch.nn import functional

import kdplug
from kdplug import LossSum
from kdplug.testing import LossLaws, broken_laws, law_names


def attention_transfer(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """Squared distance of the normalized maps of mean squared activation, mean over counted examples."""
    if (
        student_features.shape[0] != teacher_features.shape[0]
        or student_features.shape[2:] != teacher_features.shape[2:]
    ):
        raise ValueError("batch and map differ")
    sides = [
        at_least_float32(side).square().mean(1).flatten(1) for side in (student_features, teacher_features.detach())
    ]
    counts = torch.ones(student_features.shape[0], dtype=torch.bool) if mask is None else mask
    if counts.shape != student_features.shape[:1]:
        raise ValueError("one mask entry per example")
    student, teacher = (functional.normalize(torch.where(counts[:, None], side, 1.0), dim=-1) for side in sides)
    return LossSum((student - teacher).square().sum(-1).masked_fill(~counts, 0.0).sum(), counts.sum())


def padding_safe(student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> LossSum:
    """The same, of features whose padding was taken out first."""
    if mask is not None and mask.shape == student_features.shape[:1]:
        hidden = ~mask[:, None, None, None]
        student_features, teacher_features = (
            side.masked_fill(hidden, 1.0) for side in (student_features, teacher_features)
        )
    return attention_transfer(student_features, teacher_features, mask)


class MapLaws(LossLaws):
    shape = (3, 4, 3, 3)
    may_differ = (1,)
    non_negative = zero_at_equality = True


def labelled(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Tensor | float) -> LossSum:
    """Cross-entropy with the label, weighted by the teacher's confidence in it."""
    check(student_logits, teacher_logits)
    has_label = labels != -100
    degree = temperature[..., None] if isinstance(temperature, Tensor) else temperature
    index = labels.clamp_min(0)[..., None]
    student = (at_least_float32(student_logits) / degree).log_softmax(-1).gather(-1, index)[..., 0]
    weight = (at_least_float32(teacher_logits.detach()) / degree).softmax(-1).gather(-1, index)[..., 0]
    return LossSum((-student * weight).masked_fill(~has_label, 0.0).sum(), has_label.sum())


def test_feature_maps_with_a_mask_over_the_batch_are_put_under_the_laws() -> None:
    laws = laws_of(MapLaws, padding_safe)
    assert broken_laws(laws) == {}
    assert "test_longer_padding_changes_nothing" not in law_names(laws)


def test_a_mask_over_the_batch_that_comes_too_late_is_caught() -> None:
    found = broken_laws(laws_of(MapLaws, attention_transfer))
    assert "non-finite gradient" in found["test_padding_that_is_not_finite_does_not_spread"]


def test_a_loss_with_labels_is_put_under_the_laws() -> None:
    best = "test_no_student_is_better_than_the_teacher_itself"
    laws = laws_of(LossLaws, labelled, non_negative=True, t2=False, except_for={best: "it is drawn to the label"})
    assert broken_laws(laws) == {}


def test_minus_one_hundred_taken_as_an_index_is_caught() -> None:
    def careless(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with the label."""
        chosen = at_least_float32(student_logits).log_softmax(-1).gather(-1, labels[..., None])
        return correlation(student_logits, teacher_logits) - chosen.mean()

    assert "index -100" in broken_laws(laws_of(LossLaws, careless))["test_items_without_a_label_stay_finite"]


def test_logits_without_a_length_have_no_laws_on_tokens() -> None:
    laws = laws_of(LossLaws, correlation, shape=(6, 5))
    assert broken_laws(laws) == {}
    assert "test_the_order_of_tokens_does_not_matter" not in law_names(laws)


TRAINED = "test_a_trained_temperature_gets_its_gradient"


def softened_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> LossSum:
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in (student, teacher))
    value = divergence(log_q, log_p) * temperature**2
    return LossSum(value.sum(), value.numel())


def late(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Detaches the teacher too late."""
    log_q, log_p = (tempered(side, temperature).log_softmax(-1) for side in (student_logits, teacher_logits))
    value = divergence(log_q, log_p.detach()) * temperature**2
    return LossSum(value.sum(), value.numel())


def early(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Detaches the teacher before the division."""
    return softened_kl(student_logits, teacher_logits.detach(), temperature)


def refusing(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Refuses a temperature with gradient."""
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise kdplug.SettingError("refusing: a temperature with gradient is not supported")
    return late(student_logits, teacher_logits, temperature)


def in_place(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> LossSum:
    """Changes the temperature in place."""
    if isinstance(temperature, Tensor):
        temperature.clamp_(min=0.1)
    return early(student_logits, teacher_logits, temperature)


def drawing(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float, draw_seed: int = 0) -> LossSum:
    """Ignores the gradient, and draws."""
    temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    return early(student_logits, teacher_logits, temperature)


def test_a_loss_with_half_the_gradient_of_a_temperature_is_caught_and_the_advice_mends_it() -> None:
    caught = broken_laws(laws_of(LossLaws, late), only=[TRAINED])[TRAINED]
    assert "Detach the teacher's logits before they are divided by the temperature" in caught
    assert "raise kdplug.SettingError with a message that names temperature" in caught
    assert broken_laws(laws_of(LossLaws, early), only=[TRAINED]) == {}
    assert broken_laws(laws_of(LossLaws, refusing), only=[TRAINED]) == {}


def test_another_error_for_a_temperature_with_gradient_is_caught() -> None:
    caught = broken_laws(laws_of(LossLaws, in_place), only=[TRAINED])[TRAINED]
    assert caught.startswith("one temperature with gradient raises RuntimeError: a leaf Variable that requires grad")


def test_a_loss_that_draws_has_to_keep_the_gradient_too() -> None:
    caught = broken_laws(laws_of(LossLaws, drawing), only=[TRAINED])[TRAINED]
    assert caught.startswith("one temperature: its gradient is lost, but finite differences give")


def test_the_law_on_temperatures_is_there_only_for_losses_on_logits_that_request_one() -> None:
    assert TRAINED in law_names(laws_of(LossLaws, early))
    assert TRAINED not in law_names(laws_of(LossLaws, correlation))


def test_a_loss_that_rounds_to_float32_gets_that_as_advice() -> None:
    def rounded(student_features: Tensor, teacher_features: Tensor) -> LossSum:
        """Squared error."""
        check(student_features, teacher_features)
        error = (student_features.float() - teacher_features.detach().float()).square().mean(-1)
        return LossSum(error.sum(), error.numel())

    found = broken_laws(laws_of(LossLaws, rounded))
    assert "returned float32 for float64 inputs. Cast half precision with" in found["test_it_returns_a_finite_scalar"]
    assert "casts to float32" in found["test_gradient_agrees_with_finite_differences"]


def test_an_oracle_that_leaves_torch_is_compared_in_value_alone() -> None:
    def by_numpy(student_features: Tensor, teacher_features: Tensor) -> float:
        return float(((student_features.numpy() - teacher_features.numpy()) ** 2).mean())

    laws = laws_of(LossLaws, lambda student_features, teacher_features: None, oracle=staticmethod(by_numpy))
    right = type("Right", (laws,), {"entry": staticmethod(squared)})
    assert broken_laws(right, only=["test_it_agrees_with_its_oracle"]) == {}


def squared(student_features: Tensor, teacher_features: Tensor) -> LossSum:
    """Squared error, mean over tokens and the width."""
    error = (student_features - teacher_features.detach()).square().mean(-1)
    return LossSum(error.sum(), error.numel())


def test_an_oracle_that_requests_what_is_not_there_is_named() -> None:
    laws = laws_of(LossLaws, squared, oracle=staticmethod(lambda student_features, weight: 0.0))
    found = broken_laws(laws, only=["test_it_agrees_with_its_oracle"])["test_it_agrees_with_its_oracle"]
    assert found.startswith("its oracle requests names that are not inputs of a loss, parameters or buffers: weight")


class ExampleBank(nn.Module):
    """Squared distance, weighted by a number for each example that a bank keeps."""

    def __init__(self, num_examples: int, *, by_row: bool = False) -> None:
        super().__init__()
        self.by_row = by_row
        self.register_buffer("bank", torch.rand(num_examples) + 1)

    def weights(self, example_ids: Tensor) -> Tensor:
        rows = torch.arange(len(example_ids)).view(-1, *[1] * (example_ids.dim() - 1))
        return self.bank[rows.expand_as(example_ids) if self.by_row else example_ids]

    def forward(self, student_features: Tensor, teacher_features: Tensor, example_ids: Tensor) -> LossSum:
        if student_features.shape != teacher_features.shape:
            raise ValueError("shapes differ")
        error = at_least_float32(student_features) - at_least_float32(teacher_features.detach())
        values = error.square().mean(-1) * self.weights(example_ids)[:, None]
        return LossSum(values.sum(), values.numel())


class TokenBank(ExampleBank):
    """The same for the probabilities of tokens, with one id for each."""

    def forward(  # type: ignore[override]
        self, student_logits: Tensor, teacher_logits: Tensor, example_ids: Tensor, epoch: int
    ) -> LossSum:
        check(student_logits, teacher_logits)
        sides = (at_least_float32(one).softmax(-1) for one in (student_logits, teacher_logits.detach()))
        values = torch.sub(*sides).square().sum(-1) * self.weights(example_ids) / (1 + epoch)
        return LossSum(values.sum(), values.numel())


@pytest.mark.parametrize("loss", [ExampleBank, TokenBank])
def test_a_loss_with_a_bank_gets_ids_and_the_number_of_examples(loss: type) -> None:
    keys = {"shape": (3, 4, 5)} if loss is ExampleBank else {}
    laws = laws_of(type("BankLaws", (LossLaws,), keys), loss)
    assert broken_laws(laws) == {}
    wrong = laws_of(type("RowLaws", (LossLaws,), {**keys, "settings": {"by_row": True}}), loss)
    assert "test_the_order_of_examples_does_not_matter" in broken_laws(wrong)
