"""What a ``DistillationModule`` trains, keeps and saves."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from bert_run import MATCH, bert, config, examples, unlabelled, weights
from loop_run import adaptor, lightning_trainer, make_module
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

from kdplug.errors import ConfigError, RunError
from kdplug.integrations.lightning import DistillationModule

AUTO = {**MATCH, "proj": ["linear", "auto", "auto"]}


def loader(count=12, size=4, **options):
    return DataLoader(examples(count, **options), batch_size=size)


def fitted(folder, module=None, data=None, ckpt_path=None, val=None, **options):
    module = module or make_module()
    trainer = lightning_trainer(folder, **{"max_epochs": 1, **options})
    trainer.fit(module, loader() if data is None else data, val, ckpt_path=ckpt_path)
    return module, trainer


def test_the_teacher_stays_in_eval_mode_frozen_and_as_it_was(tmp_path):
    module = make_module()
    teacher = module._teachers.model[0].train()
    before, modes = weights(teacher), []
    teacher.register_forward_hook(
        lambda m, *_: modes.append((m.training, any(p.requires_grad for p in m.parameters())))
    )
    fitted(tmp_path, module, val=loader(4, seed=5))
    assert {*modes} == {(False, False)}
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(weights(teacher), before)


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training")  # as it is meant
def test_a_frozen_base_that_both_share_stays_in_eval_mode(tmp_path):
    student, teacher, modes = bert(4, 1, seed=1), bert(4, 2, seed=2), []
    student.bert.embeddings = teacher.bert.embeddings.requires_grad_(False)
    teacher.bert.embeddings.register_forward_hook(lambda module, *_: modes.append(module.training))
    module = DistillationModule(
        student, teacher, config(None), partial(torch.optim.SGD, lr=0.1), adaptor_T=adaptor, adaptor_S=adaptor
    )
    before = weights(teacher)
    fitted(tmp_path, module, val=loader(4, seed=5), max_epochs=2)
    assert {*modes} == {False}
    assert torch.equal(weights(teacher), before)


def test_memory_that_is_shared_after_the_module_was_made_is_found(tmp_path):
    module = make_module()
    teacher = module._teachers.model[0]
    module.student.classifier.bias = torch.nn.Parameter(teacher.classifier.bias.data)
    with pytest.raises(RunError, match=r"share trainable parameters \('classifier.bias'\)"):
        fitted(tmp_path, module)


def test_a_checkpoint_holds_student_and_projection_and_no_teacher(tmp_path):
    module, trainer = fitted(tmp_path)
    trainer.save_checkpoint(tmp_path / "out.ckpt")
    saved = torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"student", "objective"}
    assert len(saved) == len(module.student.state_dict()) + len(module.objective.state_dict())


def test_a_run_that_is_resumed_ends_where_an_uninterrupted_one_does(tmp_path):
    whole, _ = fitted(tmp_path, max_epochs=2)
    plan = make_module()

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    _, trainer = fitted(tmp_path, plan, max_epochs=2, callbacks=[Stop()])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = make_module()
    with torch.no_grad():
        next(rest.objective.configured.groups())[0].weight.zero_()
    fitted(tmp_path, rest, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(rest.student), weights(whole.student))
    assert torch.equal(weights(rest.objective), weights(whole.objective))


def scaled(module):
    """The same module with another teacher."""
    with torch.no_grad():
        for parameter in module._teachers.model.parameters():
            parameter.mul_(-5)
    return module


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    _, trainer = fitted(tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    more = {"max_epochs": 2, "ckpt_path": tmp_path / "half.ckpt"}
    with pytest.raises(RunError, match=r"(?s)changed since: teacher\..*teacher\.0\.weights: changed"):
        fitted(tmp_path, scaled(make_module()), **more)
    with pytest.raises(RunError, match=r"distillation\.temperature: 2\.0 -> 3\.0"):
        fitted(tmp_path, make_module(distill_config=config(temperature=3)), **more)
    fitted(tmp_path, scaled(make_module(resume_changed=True)), **more)


def test_another_teacher_may_look_at_a_checkpoint(tmp_path):
    _, trainer = fitted(tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module, trainer = fitted(tmp_path, scaled(make_module()))
    trainer.validate(module, loader(4, seed=5), ckpt_path=tmp_path / "half.ckpt", verbose=False)


def test_a_projection_has_a_group_with_its_own_options_and_a_factory_may_add_a_scheduler(tmp_path):
    def optimizer(groups):
        made = torch.optim.SGD(groups, lr=0.1)
        return {"optimizer": made, "lr_scheduler": torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)}

    _, trainer = fitted(tmp_path, make_module(optimizer=optimizer))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.05, 0.015])


def test_the_loss_and_each_term_are_logged_for_training_and_validation(tmp_path):
    _, trainer = fitted(tmp_path, val=loader(4, seed=5))
    names = {"loss", "kd_loss", "hard_label_loss", "hidden_hidden_mse_-1_-1"}
    found = trainer.callback_metrics
    assert {f"{stage}_{name}" for stage in ("train", "val") for name in names} - {*found} <= {
        "val_hidden_hidden_mse_-1_-1"
    }
    expected = found["train_kd_loss"] + 0.5 * found["train_hard_label_loss"]
    assert found["train_loss"] == pytest.approx(float(expected + 0.5 / 3 * found["train_hidden_hidden_mse_-1_-1"]))


def test_widths_that_are_auto_are_made_before_fit(tmp_path):
    module = make_module(distill_config=config(AUTO))
    with pytest.raises(RunError, match=r"Call module.materialize\(batch\)"):
        fitted(tmp_path, module)
    module.materialize(next(iter(loader())))
    fitted(tmp_path, module)
    assert next(module.objective.configured.groups())[0].weight.shape == (6, 4)


def test_accumulation_that_would_average_unequal_means_is_refused(tmp_path):
    with pytest.raises(
        RunError, match=r"number of items that \S+ averages over is .* in this micro-batch and .*GeneralDistiller"
    ):
        fitted(tmp_path, data=loader(size=2), accumulate_grad_batches=2)


def test_accumulation_over_equal_counts_is_the_gradient_of_the_whole_batch(tmp_path):
    whole, _ = fitted(tmp_path, data=loader(ragged=False))
    cut, _ = fitted(tmp_path, data=loader(size=2, ragged=False), accumulate_grad_batches=2)
    torch.testing.assert_close(weights(cut.student), weights(whole.student), rtol=0, atol=1e-12)


def test_accumulation_over_unequal_labels_is_refused(tmp_path):
    rows = unlabelled(examples(12, ragged=False), 2)
    with pytest.raises(
        RunError, match="number of items that hard_label_loss averages over is 1 in this micro-batch and 2"
    ):
        fitted(tmp_path, data=DataLoader(rows, batch_size=2), accumulate_grad_batches=2)


def test_a_scalar_is_warned_of_where_micro_batches_are_averaged(tmp_path):
    module = make_module()
    module._adaptor = lambda batch, outputs: {**adaptor(batch, outputs), "losses": outputs.loss}
    with pytest.warns(UserWarning, match="hard_label_loss: the adaptor returned a scalar"):
        fitted(tmp_path, module, data=loader(size=2, ragged=False), accumulate_grad_batches=2)


def test_a_mean_of_means_is_had_where_it_is_asked_for(tmp_path):
    whole, _ = fitted(tmp_path)
    module = make_module(normalization="micro_batch")
    cut, _ = fitted(tmp_path, module, data=loader(size=2), accumulate_grad_batches=2)
    assert not torch.allclose(weights(cut.student), weights(whole.student), rtol=0, atol=1e-8)


def test_a_last_step_that_lightning_would_divide_wrongly_is_refused(tmp_path):
    with pytest.raises(RunError, match="Set limit_train_batches=2"):
        fitted(tmp_path, data=loader(size=4, ragged=False), accumulate_grad_batches=2)
    with pytest.raises(RunError, match="Set accumulate_grad_batches to at most 3"):
        fitted(tmp_path, data=loader(size=4, ragged=False), accumulate_grad_batches=4)


def test_a_run_of_unknown_length_has_no_schedule(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(examples(8))

    with pytest.raises(RunError, match="Pass max_steps"):
        fitted(tmp_path, data=DataLoader(Endless(), batch_size=4), max_epochs=-1)


def test_a_balancer_is_an_error():
    with pytest.raises(ConfigError, match=r"^balancer: only kdplug's own loop updates a balancer"):
        make_module(distill_config=config(balancer="dwa"))


def test_an_optimizer_that_is_made_already_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer: must be a function of parameter groups, got SGD"):
        make_module(optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))


def test_validation_and_prediction_work_without_a_fit(tmp_path):
    module = make_module()
    trainer = lightning_trainer(tmp_path)
    (metrics,) = trainer.validate(module, loader(), verbose=False)
    assert metrics["val_loss"] > metrics["val_kd_loss"] > 0
    assert trainer.predict(module, loader(4))[0].logits.shape == (4, 3)


def test_parameters_that_no_loss_trains_are_warned_of_once(tmp_path):
    module = make_module(distill_config=config(kd_loss_weight=0, hard_label_weight=0))
    with pytest.warns(UserWarning, match=r"^4 of .* no gradient in the first 3 step.* classifier.weight") as caught:
        fitted(tmp_path, module)
    assert len([one for one in caught if "no gradient" in str(one.message)]) == 1


def test_a_learning_rate_of_0_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="learning rate of the SGD is 0 and there is no scheduler"):
        fitted(tmp_path, make_module(optimizer=partial(torch.optim.SGD, lr=0.0), distill_config=config(None)))


def test_a_scheduler_that_keeps_the_learning_rate_at_0_is_warned_of(tmp_path):
    def make(groups):
        optimizer = torch.optim.SGD(groups, lr=0.1)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0), "interval": "step"}
        ]

    with pytest.warns(UserWarning, match="learning rate has been 0 since step 1 of 3.* LambdaLR"):
        fitted(tmp_path, make_module(optimizer=make))
