"""What is no mask is refused wherever masks go in: an additive mask selects padding, and nan counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdplug
from kdplug import DistillationConfig, GeneralDistiller, Objective, OutputsError, ShapeError
from kdplug.contracts.outputs import Outputs
from kdplug.engine.cache.builder import take_heads
from kdplug.engine.cache.content import Content
from kdplug.errors import RunError
from kdplug.integrations.textbrewer.term import select_logits_with_mask
from kdplug.objective import batch as batch_module
from kdplug.objective import batch as mask_module
from kdplug.objective.batch import Batch

GOOD = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
ADDITIVE = (1.0 - GOOD.float()) * -1e9
WRONG = {
    "additive": ADDITIVE,
    "additive, the lowest float": (1.0 - GOOD.float()) * torch.finfo(torch.float32).min,
    "additive, half": (1.0 - GOOD.half()) * torch.finfo(torch.float16).min,
    "additive, infinite": torch.zeros(3, 4).masked_fill(GOOD == 0, -torch.inf),
    "additive, integers": (1 - GOOD) * -10_000,
    "nan": GOOD.float().masked_fill(GOOD == 0, torch.nan),
    "weights": GOOD * 0.5,
    "documents of a packed batch": GOOD * 2,
    "bytes": (GOOD * 255).to(torch.uint8),
    "minus one": -GOOD,
}
EVERY = pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
MATCH = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "kdplug-presets:hidden_mse"}
ATTACK = pytest.mark.attack("a mask that is none")


def outputs(**more):
    generator = torch.Generator().manual_seed(0)
    logits, hidden = (torch.randn(3, 4, width, generator=generator) for width in (5, 6))
    return {"logits": logits.requires_grad_(), "hidden": [hidden.requires_grad_()], **more}


def objective(**keys):
    return Objective(DistillationConfig(kd_loss_type="kdplug-logits:kl", **keys))


@ATTACK
@EVERY
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_of_logits(side, wrong):
    sides = {"student": outputs(), "teacher": outputs()}
    sides[side]["logits_mask"] = wrong
    with pytest.raises(OutputsError, match=rf"^{side}\.logits_mask: must contain only 0 and 1, or be bool, got"):
        objective()(**sides)


@ATTACK
@EVERY
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("loss", ["hidden_mse", "cos", "nst"])
def test_of_features(side, wrong, loss):
    sides = {"student": outputs(), "teacher": outputs()}
    sides[side]["inputs_mask"] = wrong
    layers = {"layer_S": [0, 0], "layer_T": [0, 0]} if loss == "nst" else {}
    match = {**MATCH, **layers, "loss": f"kdplug-presets:{loss}"}
    with pytest.raises(
        OutputsError, match=rf"^intermediate_matches\.0: the {side}'s inputs_mask must contain only 0 and 1"
    ):
        objective(kd_loss_weight=0, intermediate_matches=[match])(**sides)


@ATTACK
@EVERY
def test_of_one_of_several_teachers(wrong):
    several = Objective(DistillationConfig(kd_loss_type="kdplug-logits:kl"), teachers=["a", "b"])
    teachers = {"a": outputs(), "b": outputs(logits_mask=wrong)}
    with pytest.raises(OutputsError, match=r"^teacher 'b'\.logits_mask: must contain only 0 and 1"):
        several(outputs(logits_mask=GOOD), teachers)


@ATTACK
@EVERY
def test_of_logits_in_factors(wrong):
    factors = kdplug.FactoredLogits(torch.randn(3, 4, 2), torch.randn(5, 2))
    with pytest.raises(OutputsError, match=r"^student\.logits_mask: must contain only 0 and 1"):
        objective()({"logits": factors, "logits_mask": wrong}, outputs())


@ATTACK
@EVERY
def test_of_a_cache_with_a_codec(wrong):
    read = Outputs.read(outputs(logits_mask=wrong), "teacher")
    with pytest.raises(OutputsError, match=r"^teacher\.logits_mask: must contain only 0 and 1"):
        take_heads(Content({"logits/0": read.logits[0].detach()}), read)


@ATTACK
@EVERY
@pytest.mark.parametrize(
    "loss", ["hidden_mse", "cos", "pkd", "attention_mse", "attention_mse_sum", "attention_ce", "nst"]
)
def test_of_a_loss_called_directly(wrong, loss):
    features = torch.rand(3, 2, 4, 4) if loss.startswith("attention") else torch.rand(3, 4, 6)
    features = (features, features) if loss == "nst" else features
    call = kdplug.losses[f"kdplug-presets:{loss}"]
    with pytest.raises(OutputsError, match=rf"{loss}: a mask must contain only 0 and 1, or be bool, got"):
        call(features, features, wrong)


@ATTACK
@EVERY
def test_of_textbrewers_function(wrong):
    with pytest.raises(OutputsError, match=r"^logits_mask: must contain only 0 and 1"):
        select_logits_with_mask([torch.randn(3, 4, 5)], [wrong])


@ATTACK
@EVERY
def test_of_a_match_that_is_written_in_python(wrong, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    match = kdplug.CustomMatch("0", "0", 1.0, lambda s, t, *masks: (s - t).square().mean())
    distiller = GeneralDistiller(
        kdplug.TrainingConfig(output_dir=str(tmp_path), device="cpu"),
        DistillationConfig(kd_loss_type="kdplug-logits:kl"),
        model,
        torch.nn.Sequential(torch.nn.Linear(4, 4)),
        lambda batch, found: {"logits": found, "inputs_mask": wrong},
        lambda batch, found: {"logits": found, "inputs_mask": wrong},
        custom_matches=[match],
    )
    optimizer = torch.optim.SGD(distiller.model_S.parameters(), lr=0.1)
    with pytest.raises(OutputsError, match=r"^custom_matches\.0: the student's inputs_mask must contain only 0"):
        distiller.train(optimizer, [torch.randn(3, 4, 4)], num_epochs=1)


@ATTACK
def test_the_error_names_the_extended_mask_and_how_to_convert_it():
    extended = ADDITIVE[:, None, None, :]
    with pytest.raises(
        OutputsError, match=r"extended attention mask, .* is 0 at tokens to use.*\(mask\[:, 0, 0\] == 0\)"
    ):
        mask_module.check_mask(extended, "it")
    with pytest.raises(OutputsError, match=r"\(mask\[:, 0, -1\] == 0\)"):
        mask_module.check_mask(extended.expand(3, 1, 4, 4), "it")
    with pytest.raises(
        OutputsError, match=r"got -1e\+09\. Negative values suggest an extended attention mask, .*\(mask == 0\)"
    ):
        mask_module.check_mask(ADDITIVE, "it")
    with pytest.raises(OutputsError, match=r"got nan\. If every .* return \(mask != 0\)"):
        mask_module.check_mask(WRONG["nan"], "it")


EXTENDED = (
    r"A mask \[3, 1, \d, 4\] is the model's extended attention mask: return the tokenizer's attention_mask of shape \(b"
)


@ATTACK
@pytest.mark.parametrize("queries", [1, 4])
def test_an_extended_mask_without_padding_is_named_by_its_shape(queries):
    extended = torch.zeros(3, 1, queries, 4)
    for sides in (
        (outputs(logits_mask=extended), outputs()),
        (outputs(), outputs(logits_mask=extended)),
    ):
        with pytest.raises(ShapeError, match=EXTENDED):
            objective()(*sides)
    for loss in ("hidden_mse", "cos"):
        matched = objective(kd_loss_weight=0, intermediate_matches=[{**MATCH, "loss": f"kdplug-presets:{loss}"}])
        with pytest.raises(ShapeError, match=EXTENDED):
            matched(outputs(inputs_mask=extended), outputs())
        with pytest.raises(ShapeError, match=EXTENDED):
            matched(outputs(inputs_mask=extended), outputs(inputs_mask=GOOD))
    with pytest.raises(ShapeError, match=EXTENDED):
        select_logits_with_mask([torch.randn(3, 4, 5)], [extended])
    read = Outputs.read(outputs(logits_mask=extended), "teacher")
    with pytest.raises(RunError, match=EXTENDED):
        take_heads(Content({"logits/0": read.logits[0].detach()}), read)


@ATTACK
def test_an_extended_mask_is_named_where_a_loss_fails_with_an_error_of_torch(no_plugins):
    kdplug.losses.register("fails")(
        lambda student_features, teacher_features, mask: (student_features * mask[..., None]).sum()
    )
    matched = Objective(DistillationConfig(kd_loss_weight=0, intermediate_matches=[{**MATCH, "loss": "fails"}]))
    with pytest.raises(ShapeError, match=rf"^intermediate_matches\.0\.loss: local:fails failed: .*\. {EXTENDED}"):
        matched(outputs(inputs_mask=torch.zeros(3, 1, 4, 4)), outputs())


@pytest.mark.attack("a value that is neither 0 nor 1, somewhere in a mask")
@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8]),
    place=st.integers(0, 11),
    value=st.sampled_from([-1e9, -65504.0, -1.0, 2.0, 0.5, 255.0, float("nan"), float("inf"), float("-inf")]),
)
def test_wherever_it_is(dtype, place, value):
    mask = GOOD.to(dtype, copy=True)
    if dtype.is_floating_point or (value == value and abs(value) < 128 and value == int(value)):
        mask.view(-1)[place] = value
        with pytest.raises(OutputsError):
            mask_module.places_that_count(mask, field="logits_mask")
        with pytest.raises(OutputsError):
            mask_module.check_mask(mask, "it")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16, torch.float32, torch.bfloat16])
@ATTACK
def test_what_is_a_mask_stays_one_in_every_dtype(dtype):
    one = objective(intermediate_matches=[MATCH])
    expected = one(outputs(logits_mask=GOOD.bool(), inputs_mask=GOOD.bool()), outputs()).total
    assert one(outputs(logits_mask=GOOD.to(dtype), inputs_mask=GOOD.to(dtype)), outputs()).total == expected


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Every mask takes the way of one on a device that must not be waited for, after the first batch."""

    def doubt(mask, owner):
        return None if mask.dtype is torch.bool else mask_module.wrong_values(mask).any()

    monkeypatch.setattr(batch_module, "doubt", doubt)


@pytest.mark.attack("a mask that is none, on a device that is not waited for")
def test_on_an_accelerator_the_first_batch_is_an_error_and_a_later_one_nan(on_an_accelerator):
    one = objective(kd_loss_weight=0, intermediate_matches=[MATCH])
    with pytest.raises(OutputsError, match="extended attention mask"):
        one(outputs(inputs_mask=ADDITIVE), outputs())
    one = objective(kd_loss_weight=0, intermediate_matches=[MATCH])
    assert one(outputs(inputs_mask=GOOD), outputs()).total.isfinite()
    student = outputs(inputs_mask=ADDITIVE)
    total = one(student, outputs()).total
    assert total.isnan()
    assert torch.autograd.grad(total, student["hidden"])[0].isnan().any()


@pytest.mark.attack("a mask that is none, on a device that is not waited for")
def test_masks_of_an_accelerator_are_read_without_their_values(on_an_accelerator, monkeypatch):
    one = objective(kd_loss_weight=0, intermediate_matches=[MATCH, {**MATCH, "weight": 0.5}])
    one(outputs(inputs_mask=GOOD), outputs(inputs_mask=GOOD))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("waited for a value"))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("waited for a value"))
    one(outputs(inputs_mask=GOOD), outputs(inputs_mask=GOOD))


@pytest.mark.attack("a mask that is none, on a device that is not waited for")
def test_a_bool_mask_costs_nothing(monkeypatch):
    monkeypatch.setattr(mask_module, "wrong_values", lambda mask: pytest.fail("looked at a bool mask"))
    made = Batch(Outputs.read(outputs(inputs_mask=GOOD.bool()), "student"), (Outputs(),), 0.0, 0, 1)
    assert made.match_mask is not None
    assert len(mask_module.places_that_count(GOOD.bool(), field="logits_mask")) == 7
