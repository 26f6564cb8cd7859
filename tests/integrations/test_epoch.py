"""The epoch that a loss may request, in the Trainer and in Lightning."""

from __future__ import annotations

import pytest
from bert_run import config, examples, make_trainer
from loop_run import lightning_trainer, make_module, started
from torch.utils.data import DataLoader

from kdplug import LossSum, losses

SEEN = []


def recorder(student_logits, teacher_logits, epoch) -> LossSum:
    SEEN.append(epoch)
    return LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))


@pytest.fixture(autouse=True)
def _entries():
    SEEN.clear()
    losses.register("recorder")(recorder)


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
