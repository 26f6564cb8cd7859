"""The epoch, the examples' ids and their number, which a loss may request, in the Trainer and in Lightning."""

from __future__ import annotations

import pytest
import torch
from bert_run import config, examples, make_trainer
from loop_run import lightning_trainer, make_module, started
from torch import nn
from torch.utils.data import DataLoader

from kdplug import ConfigError, LossSum, OutputsError, losses

SEEN = []


def recorder(student_logits, teacher_logits, epoch) -> LossSum:
    SEEN.append(epoch)
    return LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))


class Bank(nn.Module):
    def __init__(self, num_examples) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(num_examples, 3, dtype=torch.float64))

    def forward(self, student_logits, teacher_logits, example_ids) -> LossSum:
        SEEN.append((example_ids.tolist(), self.training))
        self.bank[example_ids] = teacher_logits.detach()
        return LossSum((student_logits - self.bank[example_ids]).square().sum(), len(student_logits))


@pytest.fixture(autouse=True)
def _entries():
    SEEN.clear()
    losses.register("recorder")(recorder)
    losses.register("bank")(Bank)


def distillation():
    return config(None, kd_loss_type="recorder", temperature=1)


def test_the_trainer_counts_the_passes_over_the_data(tmp_path):
    trainer = make_trainer(tmp_path, distill_config=distillation(), rows=examples(12), max_steps=7)
    trainer.train()
    assert SEEN == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_resumed_trainer_goes_on_with_the_same_epochs(tmp_path, at):
    def make(steps):
        options = {"save_strategy": "steps", "save_steps": at, "max_steps": 7}
        trainer = make_trainer(tmp_path, distill_config=distillation(), rows=examples(12), **options)
        started(trainer.objective)
        trainer.args.max_steps = steps
        return trainer

    make(at).train()
    SEEN.clear()
    make(7).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert [0, 0, 0, 1, 1, 1, 2][at:] == SEEN


def test_lightning_counts_the_passes_over_the_data(tmp_path):
    module = make_module(distill_config=distillation())
    lightning_trainer(tmp_path, max_epochs=2).fit(module, DataLoader(examples(12), batch_size=4))
    assert SEEN == [0, 0, 0, 1, 1, 1]


def banked():
    return config(None, kd_loss_type="bank", temperature=1, hard_label_weight=0.5)


def identified(count, start=0):
    return [{**row, "example_ids": start + place} for place, row in enumerate(examples(count))]


def test_the_trainer_reads_ids_from_the_batch_and_leaves_the_loss_out_of_evaluation(tmp_path):
    options = {"distill_config": banked(), "rows": identified(12), "max_steps": 6}
    trainer = make_trainer(tmp_path, **options, train_sampling_strategy="random")
    trainer.train()
    assert sorted(one for ids, _ in SEEN for one in ids) == sorted([*range(12)] * 2)
    assert all(training for _, training in SEEN)
    assert len(trainer.objective.configured["0"].loss.bank) == 12
    SEEN.clear()
    with pytest.warns(UserWarning, match="eval mode leaves out each term that requests example_ids, .*: kd_loss"):
        trainer.evaluate(identified(4, start=100))
    assert not SEEN


def test_lightning_reads_ids_from_the_batch_and_leaves_the_loss_out_of_validation(tmp_path):
    module = make_module(distill_config=banked(), start=False)
    batch = next(iter(DataLoader(identified(4), batch_size=4)))
    with pytest.raises(ConfigError, match=r"^kd_loss_type: kd_loss: local:bank takes num_examples"):
        module.materialize(batch)
    module.materialize(batch, num_examples=12)
    val = DataLoader(identified(4, start=100), batch_size=4)
    with pytest.warns(UserWarning, match="leaves out each term that requests example_ids, .*: kd_loss"):
        lightning_trainer(tmp_path, max_epochs=1).fit(
            module, DataLoader(identified(12), batch_size=4, shuffle=True), val
        )
    assert sorted(one for ids, _ in SEEN for one in ids) == list(range(12))


NO_IDS = r"^kd_loss_type: local:bank requests example_ids, but the batch has none.*a key"


def test_without_ids_the_first_step_names_the_batch_key(tmp_path):
    trainer = make_trainer(tmp_path, distill_config=banked(), rows=examples(12))
    with pytest.raises(OutputsError, match=NO_IDS):
        trainer.train()
    module = make_module(distill_config=banked(), start=False)
    module.materialize(next(iter(DataLoader(examples(4), batch_size=4))), num_examples=12)
    with pytest.raises(OutputsError, match=NO_IDS):
        lightning_trainer(tmp_path, max_epochs=1).fit(module, DataLoader(examples(12), batch_size=4))
    assert not SEEN
