"""What a user of ``BasicTrainer`` sees."""

from __future__ import annotations

import inspect
import warnings
from functools import partial

import pytest
import torch
from small_run import make_batches, make_student, sgd, weights
from torch.optim.lr_scheduler import LambdaLR

from kdplug.config.training import TrainingConfig
from kdplug.distillers.trainer import BasicTrainer
from kdplug.errors import ConfigError, OutputsError


def make(folder, model, adaptor=None, *, observers=(), **training):
    config = TrainingConfig(output_dir=str(folder), device="cpu", **training)
    return BasicTrainer(config, model, adaptor, observers=observers, show_progress=False)


class Reports:
    """An observer that keeps the losses of each step."""

    def __init__(self):
        self.totals, self.terms = [], []

    def run_start(self, run):
        assert run.teacher is None

    def step_end(self, run, step, report):
        self.totals.append(report.total.item())
        self.terms.append({name: term.value.item() for name, term in report.terms.items()})

    def run_end(self, run, error):
        pass


def by_hand(batches, loss=lambda outputs: outputs["losses"], clip=None):
    model = make_student()
    optimizer = sgd(model)
    scheduler, totals = LambdaLR(optimizer, lambda step: 0.9**step), []
    for batch in batches:
        optimizer.zero_grad()
        total = loss(model(batch))
        total.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        totals.append(total.item())
    return weights(model), totals


DECAY = {"scheduler_class": LambdaLR, "scheduler_args": {"lr_lambda": lambda step: 0.9**step}}


def test_the_arguments_are_in_textbrewers_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer
    for method in ("__init__", "train"):
        theirs, ours = (getattr(c, method) for c in (textbrewer.BasicTrainer, BasicTrainer))
        names = [name for name in inspect.signature(theirs).parameters if name != "args"]
        assert list(inspect.signature(ours).parameters)[: len(names)] == names


def test_it_trains_as_a_loop_written_by_hand_and_logs_the_total(tmp_path):
    model, seen = make_student(), Reports()
    make(tmp_path, model, observers=[seen]).train(sgd(model), make_batches(4), 2, max_grad_norm=0.05, **DECAY)
    expected, totals = by_hand(make_batches(4) * 2, clip=0.05)
    assert torch.equal(weights(model), expected)
    assert seen.totals == totals
    assert seen.terms == [{"hard_label_loss": total} for total in totals]


def test_the_total_goes_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make_student()
    make(tmp_path, model, log_dir=str(tmp_path / "log"), logging_steps=1).train(sgd(model), make_batches(2), 1)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [scalar.step for scalar in log.Scalars("scalar/total_loss")] == [1, 2]


def test_several_losses_are_summed_each_as_its_mean(tmp_path):
    model = make_student()
    adaptor = lambda batch, outputs: {"losses": [outputs["logits"].square(), outputs["losses"]]}  # noqa: E731
    make(tmp_path, model, adaptor).train(sgd(model), make_batches(3), 1, **DECAY)
    expected, _ = by_hand(make_batches(3), loss=lambda outputs: 2 * outputs["losses"])
    assert torch.allclose(weights(model), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("adaptor", [lambda batch, outputs: {"logits": outputs["logits"]}, lambda batch, outputs: {}])
def test_missing_losses_are_reported_in_words_of_the_trainer(tmp_path, adaptor):
    model = make_student()
    with pytest.raises(
        OutputsError,
        match=r"^losses: the model returned no losses, only (logits|nothing)\. Supervised training needs them",
    ):
        make(tmp_path, model, adaptor).train(sgd(model), make_batches(1), 1)


def test_an_unknown_key_of_the_adaptor_is_reported(tmp_path):
    model = make_student()
    with pytest.raises(OutputsError, match=r"model.loss: .* Did you mean 'losses'\?"):
        make(tmp_path, model, lambda batch, outputs: {"loss": outputs["losses"]}).train(sgd(model), make_batches(1), 1)


def test_1_11_num_epochs_is_not_needed_with_num_steps(tmp_path):
    model = make_student()
    trainer = make(tmp_path, model)
    assert trainer.train(sgd(model), make_batches(2), num_steps=5).step == 5
    with pytest.raises(ConfigError, match="pass num_epochs or num_steps"):
        trainer.train(sgd(model), make_batches(2))


def test_checkpoints_callback_postprocessor_and_further_arguments_are_those_of_a_distiller(tmp_path):
    model, seen = make_student(), []
    adaptor = lambda batch, outputs: {"losses": outputs["logits"].square()}  # noqa: E731
    trainer = make(tmp_path, model, adaptor, ckpt_frequency=2, gradient_accumulation_steps=2)
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    steps = []
    result = trainer.train(
        sgd(model),
        make_batches(4),
        1,
        callback=lambda model, step: steps.append(step),
        batch_postprocessor=partial(torch.mul, 2),
        scale=0.5,
    )
    assert [path.parent.name for path in result.checkpoints] == ["step-1", "step-2"]
    assert (steps, seen) == ([1, 2], [{"scale": 0.5}] * 4)


def test_with_puts_the_model_in_train_mode_for_its_block(tmp_path):
    model = make_student().eval()
    with make(tmp_path, model) as trainer:
        assert trainer.model.training
    assert not model.training
