"""LoRA and fake quantisation: their weights by hand, and what a finished student holds."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from kdplug_papers.student_weights import FakeQuantize, LoRA
from torch import nn
from vision_recipes import ConvNet

import kdplug
from kdplug.testing import StudentTransformLaws


class ConvolutionalStudent(StudentTransformLaws):
    def student(self):
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

    def inputs(self):
        return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(3))


class TestLoRA(ConvolutionalStudent):
    entry = "kdplug-papers:lora"
    settings: ClassVar = {"rank": 2, "alpha": 3.0}
    keeps_start = True


class TestLoRAOfOneLayer(ConvolutionalStudent):
    entry = "kdplug-papers:lora"
    settings: ClassVar = {"rank": 1, "layers": ["3"], "also": ["0.*"]}
    keeps_start = True


class TestFakeQuantize(ConvolutionalStudent):
    entry = "kdplug-papers:fake_quantize"
    settings: ClassVar = {"bits": 4}


def test_lora_adds_the_scaled_product_of_two_matrices():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    prepared = LoRA(rank=2, alpha=3.0).prepare(nn.Sequential(layer))
    (adapter,) = prepared[0].parametrizations.weight
    with torch.no_grad():
        adapter.up.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    by_hand = [
        [
            before[row, column] + 3.0 / 2 * sum(adapter.up[row, r] * adapter.down[r, column] for r in range(2))
            for column in range(3)
        ]
        for row in range(2)
    ]
    expected = torch.stack([torch.stack(row) for row in by_hand]).detach()
    torch.testing.assert_close(prepared[0].weight.detach(), expected)
    with prepared.disable_adapter():
        assert torch.equal(prepared[0].weight, before)
    torch.testing.assert_close(prepared[0].weight.detach(), expected)
    assert [name for name, one in prepared.named_parameters() if one.requires_grad] == [
        "0.parametrizations.weight.0.down",
        "0.parametrizations.weight.0.up",
    ]
    finished = LoRA(rank=2, alpha=3.0).finish(prepared)
    torch.testing.assert_close(finished[0].weight.detach(), expected)
    assert set(finished.state_dict()) == {"0.weight", "0.bias"}


def test_weights_are_rounded_to_the_grid_of_their_channel_and_the_gradient_passes():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.7, -0.34, 0.1], [0.0, 0.0, 0.0]]))
    prepared = FakeQuantize(bits=4).prepare(nn.Sequential(layer))
    expected = torch.tensor([[0.7, -0.3, 0.1], [0.0, 0.0, 0.0]])  # a grid of 0.7 / 7
    torch.testing.assert_close(prepared[0].weight.detach(), expected)
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    prepared(inputs).sum().backward()
    torch.testing.assert_close(prepared[0].parametrizations.weight.original.grad, inputs.expand(2, 3))
    finished = FakeQuantize(bits=4).finish(prepared)
    assert all(len(channel.unique()) <= 15 for channel in finished[0].weight)


@pytest.mark.parametrize("transform", [LoRA(layers=["head"]), FakeQuantize(layers=["head"])])
def test_a_layer_that_does_not_exist_is_an_error(transform):
    with pytest.raises(ValueError, match="has a name like head"):
        transform.prepare(nn.Linear(2, 2))


def test_the_student_without_adapters_is_a_teacher(tmp_path):
    """Self-distillation: adapters learn labels, and stay near the student that they started from."""
    torch.manual_seed(0)
    transforms = kdplug.StudentTransforms([{"name": "lora", "rank": 2}])
    student = transforms.prepare(Logits())
    inputs = torch.randn(16, 3)
    with student.disable_adapter():
        before = student(inputs, None)["logits"]
    distiller = kdplug.GeneralDistiller(
        kdplug.TrainingConfig(output_dir=str(tmp_path), device="cpu"),
        kdplug.DistillationConfig(hard_label_weight=0.1),
        "self",
        student,
        show_progress=False,
    )
    data = [(inputs, torch.randint(2, (16,)))]
    distiller.train(torch.optim.AdamW(student.parameters(), lr=0.01), data, num_steps=20)
    with student.disable_adapter():
        assert torch.equal(student(inputs, None)["logits"], before)
    assert not torch.equal(student(inputs, None)["logits"], before)


class Logits(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, inputs, labels):
        logits = self.fc(inputs)
        losses = None if labels is None else nn.functional.cross_entropy(logits, labels, reduction="none")
        return {"logits": logits, **({} if losses is None else {"labels": labels, "losses": losses})}


def test_a_convolutional_network_keeps_its_layers():
    student = kdplug.StudentTransforms(["fake_quantize"]).prepare(ConvNet(4, seed=1))
    assert isinstance(student, ConvNet)
