"""Each term is divided once, by what it counts over the global batch: how a batch was cut changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from small_run import make_distiller, make_student, sgd, weights
from token_run import match, train
from torch.utils.data import DataLoader, TensorDataset
from two_processes import run_in_two_processes

TOKEN_MEANS = ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean", "hidden_mse", "cos"]
OTHER_MEANS = ["pkd", "fsp", "nst"]
CUTS = [[[0, 1, 2], [3, 4, 5]], [[0], [1, 2], [3, 4, 5]], [[i] for i in range(6)]]


def close(one, other):
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:. of the student's 6 trained parameters got no gradient")  # no loss reads its heads
@pytest.mark.parametrize("cut", CUTS, ids=["halves", "unequal", "single"])
@pytest.mark.parametrize("loss", TOKEN_MEANS + OTHER_MEANS)
def test_cutting_a_batch_leaves_the_gradient_of_a_match_unchanged(tmp_path, loss, cut):
    options = {"kd_loss_weight": 0, "intermediate_matches": [match(loss)]}
    whole, _, reported = train(tmp_path / "whole", [list(range(6))], accumulation=1, **options)
    pieces, _, result = train(tmp_path / "cut", cut, accumulation=len(cut), **options)
    close(pieces, whole)
    assert result.report.total.item() == pytest.approx(reported.report.total.item(), rel=1e-10)


@pytest.mark.filterwarnings("ignore:2 of the student's 6 trained parameters got no gradient")  # its other head
@pytest.mark.parametrize("cut", CUTS, ids=["halves", "unequal", "single"])
@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_cutting_a_batch_leaves_the_gradient_of_the_kd_loss_unchanged(tmp_path, loss, cut):
    whole, _, _ = train(tmp_path / "whole", [list(range(6))], accumulation=1, kd_loss_type=loss)
    pieces, _, _ = train(tmp_path / "cut", cut, accumulation=len(cut), kd_loss_type=loss)
    close(pieces, whole)


def test_terms_that_count_different_things_are_each_divided_by_their_own(tmp_path):
    options = {"hard_label_weight": 0, "intermediate_matches": [match("hidden_mse", weight=3), match("attention_mse")]}
    whole, _, first = train(tmp_path / "whole", [list(range(6))], accumulation=1, **options)
    pieces, _, second = train(tmp_path / "cut", CUTS[1], accumulation=3, **options)
    close(pieces, whole)
    for name, term in first.report.terms.items():
        assert second.report.terms[name].value.item() == pytest.approx(term.value.item(), rel=1e-10)


def test_a_mean_of_means_is_had_where_it_is_asked_for_and_differs(tmp_path):
    from kdplug.config.training import TrainingConfig

    assert TrainingConfig(normalization="micro_batch").normalization == "micro_batch"
    student, other = make_student(), make_student()
    data = TensorDataset(torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    for model, over in ((student, "global"), (other, "micro_batch")):
        training = {"gradient_accumulation_steps": 2, "normalization": over}
        distiller = make_distiller(tmp_path / over, model, training=training)
        distiller.train(sgd(model), DataLoader(data, batch_size=3), num_epochs=1)
    assert not torch.equal(weights(student), weights(other))


def test_learning_the_counts_draws_no_random_number_and_moves_no_buffer(tmp_path):
    """A mask makes counts data, so that a pass without gradient comes first: dropout must not notice."""
    states = []

    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = torch.nn.Linear(3, 4).double(), torch.nn.BatchNorm1d(4).double()

        def forward(self, x, mask):
            states.append(torch.get_rng_state())
            torch.rand(1)
            hidden = self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2)
            return {"logits": hidden, "logits_mask": mask}

    from token_run import TokenNet, make_data

    student = Noisy()
    distiller = make_distiller(tmp_path, student, TokenNet(4, seed=2), training={"gradient_accumulation_steps": 2})
    distiller.train(sgd(student), DataLoader(make_data(4), batch_size=2), num_epochs=1)
    assert student.norm.num_batches_tracked == 2
    assert any(torch.equal(states[0], later) for later in states[1:])


SCRIPT = """
import os, sys, torch
from pathlib import Path
from token_run import match, train
from small_run import weights
matches = [match("hidden_mse", proj=["linear", 4, 4]), match("attention_mse")]
# each process takes every other batch, as accelerate divides them; the last window is ragged
batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [0, 5], [1, 7]]
for accumulation in (1, 3):
    folder = Path(sys.argv[1]) / str(accumulation)
    student, objective, result = train(folder, batches, accumulation=accumulation, intermediate_matches=matches)
    record = {"weights": weights(student), "objective": weights(objective), "step": result.step}
    torch.save(record, folder / f"{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two gloo processes left each run."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(folder, SCRIPT)
    return folder


@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_processes_with_unequal_masks_train_what_one_does(two_processes, tmp_path, accumulation):
    matches = [match("hidden_mse", proj=["linear", 4, 4]), match("attention_mse")]
    joined = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 5, 1, 7]]
    student, objective, result = train(tmp_path, joined, accumulation=accumulation, intermediate_matches=matches)
    for rank in (0, 1):
        record = torch.load(two_processes / str(accumulation) / f"{rank}.pt")
        assert record["step"] == result.step
        torch.testing.assert_close(record["weights"], weights(student), rtol=0, atol=1e-10)
        torch.testing.assert_close(record["objective"], weights(objective), rtol=0, atol=1e-10)
    places = (two_processes / str(accumulation), tmp_path)
    lines = [(place / "log.jsonl").read_text().splitlines() for place in places]
    for ours, alone in zip(*lines, strict=True):
        assert json.loads(ours) == pytest.approx(json.loads(alone), rel=1e-9)
