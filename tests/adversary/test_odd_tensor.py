"""Tensors that no loss can read are an error that names the key, before a loss turns them into something else."""

from __future__ import annotations

import pytest
import torch

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import OutputsError
from kdplug.objective.objective import Objective

MATCH = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"}
ODD = {
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": torch.Tensor.to_sparse,
    "int64": torch.Tensor.long,
    "int8": lambda tensor: tensor.to(torch.int8),
    "bool": torch.Tensor.bool,
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
}


def outputs(**changes):
    draws = torch.Generator().manual_seed(0)
    given = {"logits": torch.randn(4, 3, generator=draws), "hidden": [torch.randn(4, 2, 3, generator=draws)]}
    return {**given, "labels": torch.tensor([0, 1, 2, 0]), **changes}


def call(student, teacher, **config):
    matches = [MATCH] if config.pop("matches", True) else []
    return Objective(DistillationConfig(intermediate_matches=matches, **config))(student=student, teacher=teacher)


@pytest.mark.attack("logits or features that are no dense floating-point tensor")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("key", ["logits", "hidden"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_logits_and_features_are_dense_floating_point_tensors(side, key, kind):
    whole = outputs()
    odd = outputs(**{key: ODD[kind](whole["logits"]) if key == "logits" else [ODD[kind](whole["hidden"][0])]})
    with pytest.raises(OutputsError, match=rf"^{side}\.{key}\.0: must be a dense floating-point tensor"):
        call(*((odd, whole) if side == "student" else (whole, odd)))


@pytest.mark.attack("logits or features that are no dense floating-point tensor")
@pytest.mark.parametrize("kind", ["complex", "float8", "sparse", "nested"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_extras_are_dense_and_real(side, kind):
    whole = outputs(extras={"values": torch.randn(4, 2)})
    odd = outputs(extras={"values": ODD[kind](torch.randn(4, 2, 2))})
    with pytest.raises(OutputsError, match=rf"^{side}\.extras\.values: must be a dense floating-point tensor"):
        call(*((odd, whole) if side == "student" else (whole, odd)))
    call(*((outputs(extras={"ids": torch.arange(4)}), whole) if side == "student" else (whole, outputs())))


@pytest.mark.attack("logits or features that are no dense floating-point tensor")
@pytest.mark.parametrize("key", ["logits_mask", "inputs_mask", "labels"])
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda tensor: tensor.to(torch.complex64)])
def test_masks_and_labels_are_dense_and_real(key, make):
    shape = (4, 2) if key == "inputs_mask" else (4,)
    with pytest.raises(OutputsError, match=rf"^student\.{key}: must be a dense, real tensor"):
        call(outputs(**{key: make(torch.ones(shape))}), outputs())


@pytest.mark.attack("logits or features that are no dense floating-point tensor")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_losses_can_read_is_read(dtype):
    strided = torch.randn(3, 4).t().to(dtype).requires_grad_()
    expanded = torch.randn(1, 3).to(dtype).expand(4, 3)
    call(outputs(logits=strided), outputs(logits=expanded), matches=False).total.backward()
    assert strided.grad is not None


@pytest.mark.attack("labels that are no class of the logits")
@pytest.mark.parametrize("loss", ["dkd", "nkd", "wsld"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 3, 0], "label 3 does not exist: there are 3 classes"), ([True] * 4, "must be integer")],
)
def test_a_label_that_is_no_class_is_an_error(loss, labels, message):
    with pytest.raises(OutputsError, match=message):
        call(outputs(labels=torch.tensor(labels)), outputs(), kd_loss_type=loss, matches=False)
