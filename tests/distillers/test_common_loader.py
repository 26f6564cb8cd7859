"""Loaders of ``(x, y)`` pairs and labelled dicts, for models whose ``forward`` takes only the inputs."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.general import GeneralDistiller
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.engine.evaluation import Evaluation
from kdplug.errors import RunError

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
PAIRS = DataLoader(TensorDataset(X, Y), batch_size=4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)


class TwoInputs(Net):
    def forward(self, x, scale=None):
        return self.layer(x if scale is None else x * scale)


def dicts(**more):
    return [{"x": X[i : i + 4], "labels": Y[i : i + 4]} | more for i in range(0, 12, 4)]


def train(folder, loader, *, models=Net, adaptor=None, distiller=GeneralDistiller, train=(), **config):
    torch.manual_seed(0)
    teacher, student = models(), models()
    made = distiller(
        TrainingConfig(output_dir=str(folder), device="cpu"),
        DistillationConfig(**config),
        teacher,
        student,
        None,
        adaptor,
        show_progress=False,
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return made.train(optimizer, loader, num_epochs=1, **dict(train)), student


@pytest.mark.parametrize("distiller", [BasicDistiller, GeneralDistiller])
@pytest.mark.parametrize("loader", [PAIRS, dicts()], ids=["pairs", "dicts"])
def test_labels_that_forward_does_not_take_stay_with_the_adaptor(tmp_path, loader, distiller, caplog):
    with caplog.at_level(logging.INFO, "kdplug"):
        result, _ = train(tmp_path, loader, distiller=distiller)
    assert result.step == 3
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("loader", [PAIRS, dicts()], ids=["pairs", "dicts"])
def test_without_an_adaptor_the_hard_label_loss_is_the_cross_entropy_with_them(tmp_path, loader):
    result, student = train(tmp_path / "run", loader, hard_label_weight=1, kd_loss_weight=0)
    torch.manual_seed(0)
    Net()
    expected = Net()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for place in range(0, 12, 4):
        loss = nn.functional.cross_entropy(expected(X[place : place + 4]), Y[place : place + 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(student.layer.weight, expected.layer.weight)
    assert result.report.terms["hard_label_loss"].value.item() == pytest.approx(loss.item())


@pytest.mark.parametrize("loader", [PAIRS, dicts()], ids=["pairs", "dicts"])
def test_a_task_without_an_adaptor_gets_the_same_hard_label_loss(tmp_path, loader):
    result, student = train(tmp_path / "alone", loader, hard_label_weight=1)
    torch.manual_seed(0)
    teacher, other = Net(), Net()
    training = TrainingConfig(output_dir=str(tmp_path / "task"), device="cpu")
    config = DistillationConfig(hard_label_weight=1)
    distiller = MultiTaskDistiller(training, config, {"a": teacher}, other, show_progress=False)
    found = distiller.train(torch.optim.SGD(other.parameters(), lr=0.1), {"a": loader}, 3, tau=0)
    assert torch.equal(other.layer.weight, student.layer.weight)
    assert found.report.terms["a/hard_label_loss"].value == result.report.terms["hard_label_loss"].value


@pytest.mark.parametrize(
    ("loader", "item"), [(PAIRS, "the last item of the batch, int64[4]"), (dicts(), "'labels', int64[4]")]
)
def test_what_is_used_as_labels_is_logged_once(tmp_path, caplog, loader, item):
    with caplog.at_level(logging.INFO, "kdplug"):
        train(tmp_path, loader, hard_label_weight=1)
    text = f"Net.forward(x) does not take {item}: the hard-label loss uses it as labels"
    assert [one.getMessage() for one in caplog.records].count(text) == 1


def test_an_unlabelled_example_counts_nothing_in_it(tmp_path):
    some = Y.clone()
    some[:4] = torch.tensor([0, -100, -100, -100])
    loader = DataLoader(TensorDataset(X[:4], some[:4]), batch_size=4)
    result, _ = train(tmp_path, loader, hard_label_weight=1, kd_loss_weight=0)
    (part,) = result.report.terms["hard_label_loss"].parts
    assert float(part.count) == 1


def test_a_loss_that_reads_labels_finds_them(tmp_path):
    result, _ = train(tmp_path, PAIRS, kd_loss_type="dkd")
    assert torch.isfinite(result.report.total)


def test_labels_that_are_no_class_per_example_are_left_to_an_adaptor(tmp_path):
    loader = DataLoader(TensorDataset(X, torch.randn(12, 3)), batch_size=4)
    assert train(tmp_path / "kd", loader)[0].step == 3
    with pytest.raises(Exception, match=r"adaptor"):
        train(tmp_path / "hard", loader, hard_label_weight=1)


def test_an_adaptor_gets_the_whole_batch(tmp_path):
    seen = []

    def adaptor(batch, logits):
        seen.append(batch)
        _, y = batch
        return {"logits": logits, "losses": nn.functional.cross_entropy(logits, y, reduction="none")}

    train(tmp_path, PAIRS, adaptor=adaptor, hard_label_weight=1)
    assert torch.equal(seen[0][1], Y[:4])


def test_metrics_of_an_evaluation_find_the_labels(tmp_path):
    from torchmetrics.classification import MulticlassAccuracy

    metrics = {"accuracy": MulticlassAccuracy(num_classes=3, average="micro")}
    evaluation = Evaluation(dataloader=PAIRS, metrics=metrics, best="accuracy")
    assert train(tmp_path, PAIRS, train={"evaluation": evaluation})[0].best is not None


def test_a_tensor_that_is_not_passed_and_is_no_label_is_named_once_per_model(tmp_path, caplog):
    train(tmp_path, dicts(weights=torch.ones(4)))
    said = [one.getMessage() for one in caplog.records if "weights" in one.getMessage()]
    assert len(said) == 2  # once for each model
    assert "Net.forward(x)" in said[0]


@pytest.mark.parametrize("last", [torch.ones(12), torch.ones(12, 4, dtype=torch.int64)], ids=["weights", "mask"])
def test_a_last_item_that_is_neither_passed_nor_a_class_label_is_named_once_per_model(tmp_path, caplog, last):
    train(tmp_path, DataLoader(TensorDataset(X, last), batch_size=4))
    named = [one.getMessage() for one in caplog.records if "does not take the last item" in one.getMessage()]
    assert len(named) == 2  # one for each model


def test_a_last_item_with_class_labels_is_no_warning(tmp_path, caplog):
    train(tmp_path, PAIRS)
    assert not [one for one in caplog.records if "the last item" in one.getMessage() and one.levelno >= logging.WARNING]


def test_a_key_like_a_parameter_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"'scal'.*did you mean 'scale'.*\n.*batch_postprocessor"):
        train(tmp_path, dicts(scal=torch.ones(4, 1)), models=TwoInputs)


def test_a_pair_whose_second_item_may_be_an_input_is_named(tmp_path, caplog):
    loader = DataLoader(TensorDataset(X, torch.ones(12, 1, dtype=torch.int64).squeeze()), batch_size=4)

    class Net2(TwoInputs):
        def forward(self, x, scale=None):
            return self.layer(x * scale[:, None])

    train(tmp_path, loader, models=Net2)
    assert sum("'scale'" in one.getMessage() for one in caplog.records) == 2


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (DataLoader(TensorDataset(X, Y, Y), batch_size=4), r"takes 1 input.*holds 3"),
        ([{"pixels": X, "labels": Y}], r"needs 'x'.*pixels, labels"),
        ([[]], r"needs 'x'"),
    ],
    ids=["three", "other name", "none"],
)
def test_a_batch_that_cannot_be_assigned_is_an_error_with_the_lines_that_mend_it(tmp_path, loader, text):
    with pytest.raises(RunError, match=text) as error:
        train(tmp_path, loader)
    assert "\n    batch_postprocessor=lambda batch: {'x': " in str(error.value)
    assert "\n    def forward(self, *" in str(error.value)


def test_an_argument_that_the_batch_holds_too_is_an_error(tmp_path):
    with pytest.raises(RunError, match="'scale' is in the batch and in the model arguments of train"):
        train(tmp_path, dicts(scale=torch.ones(4, 1)), models=TwoInputs, train={"scale": 2.0})


def test_the_line_in_the_error_mends_it(tmp_path):
    loader = DataLoader(TensorDataset(X, Y, Y), batch_size=4)
    mended = {"batch_postprocessor": lambda batch: {"x": batch[0], "labels": batch[1]}}
    assert train(tmp_path, loader, train=mended, hard_label_weight=1)[0].step == 3
