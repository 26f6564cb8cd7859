"""Each defect of TextBrewer's loop that was demonstrated, and its absence here. Numbers are those of the list of defects."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from accelerate import Accelerator
from small_run import AUTO, PROJECTED, make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import OutputsError, RunError, SettingError


def flags(model):
    return [module.training for module in model.modules()]


def test_2_1_3_a_teacher_that_the_user_froze_trains_a_student(tmp_path):
    student = make_student()
    make_distiller(tmp_path, student, make_teacher().requires_grad_(False)).train(
        sgd(student), make_batches(1), num_epochs=1
    )


def test_2_1_3_with_accumulation_gradients_are_exchanged_once_a_step(tmp_path, monkeypatch):
    kept, no_sync, student = [], Accelerator.no_sync, make_student()
    monkeypatch.setattr(Accelerator, "no_sync", lambda self, model: kept.append(model) or no_sync(self, model))
    distiller = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": 3})
    distiller.train(sgd(student), make_batches(6), num_epochs=1)
    assert len(kept) == 2 * (3 - 1)


class Encoding(UserDict):
    """A mapping that is no dict, as the batches of transformers' tokenizers."""


@pytest.mark.parametrize("caching", [False, True])
def test_2_1_5_a_batch_that_is_a_mapping_and_no_dict_is_passed_by_keyword_and_cached(tmp_path, caching):
    ends = []
    for kind in (dict, Encoding):
        student = make_student()
        distiller = make_distiller(tmp_path, student, is_caching_logits=caching)
        distiller.train(sgd(student), [kind(x=batch) for batch in make_batches(3)], num_epochs=2, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_2_1_8_a_prebuilt_scheduler_goes_with_a_projection(tmp_path):
    student = make_student()
    optimizer = sgd(student)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    make_distiller(tmp_path, student, matches=[PROJECTED]).train(
        optimizer, make_batches(2), num_epochs=1, scheduler=scheduler
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 / 4, 0.05 / 4]


@pytest.mark.parametrize("match", [PROJECTED, AUTO], ids=["explicit", "auto"])
def test_2_1_9_training_twice_with_one_optimizer_and_a_projection(tmp_path, match):
    student = make_student()
    distiller, optimizer = make_distiller(tmp_path, student, matches=[match]), sgd(student)
    for _ in range(2):
        distiller.train(optimizer, make_batches(2), num_epochs=1, overwrite=True)
    assert len(optimizer.param_groups) == 2


def test_2_1_10_steps_need_no_ckpt_steps(tmp_path):
    student = make_student()
    result = make_distiller(tmp_path, student).train(sgd(student), make_batches(2), num_steps=3)
    assert [path.parent.name for path in result.checkpoints] == ["step-3"]


def test_2_1_12_constant_may_be_in_a_list_and_a_bare_flsw_asks_for_its_settings(tmp_path):
    ends = []
    for scheduler in (None, "constant", ["constant"]):
        student = make_student()
        distiller = make_distiller(tmp_path, student, temperature_scheduler=scheduler)
        distiller.train(sgd(student), make_batches(2), num_epochs=1, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    with pytest.raises(SettingError, match=r"^temperature_scheduler\.beta: is required"):
        make_distiller(tmp_path, make_student(), temperature_scheduler="flsw")


def test_2_2_2_a_batch_that_is_all_padding_destroys_no_weight(tmp_path):
    def adaptor(batch, outputs):
        hidden = [hidden.unsqueeze(1) for hidden in outputs["hidden"]]
        return {"logits": outputs["logits"].unsqueeze(1), "hidden": hidden, "inputs_mask": mask, "logits_mask": mask}

    student, mask = make_student(), torch.zeros(4, 1)
    before = weights(student)
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED], adaptors=(adaptor, adaptor))
    distiller.train(sgd(student), make_batches(2), num_epochs=1)
    assert torch.equal(weights(student), before)


@pytest.mark.parametrize("length", [{"num_steps": 1}, {"num_epochs": 1}])
def test_2_2_7_a_stale_gradient_is_not_applied(tmp_path, length):
    clean, stale = make_student(), make_student()
    for parameter in stale.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for student in (clean, stale):
        make_distiller(tmp_path, student).train(sgd(student), make_batches(1), **length, overwrite=True)
    assert torch.equal(weights(clean), weights(stale))


def test_2_2_8_a_loader_shorter_than_the_accumulation_takes_a_step(tmp_path):
    student = make_student()
    before = weights(student)
    result = make_distiller(tmp_path, student, training={"gradient_accumulation_steps": 8}).train(
        sgd(student), make_batches(3), num_epochs=1
    )
    assert result.step == 1
    assert len(result.checkpoints) == 1
    assert not torch.equal(before, weights(student))


def test_2_2_9_the_teacher_is_in_eval_mode_and_the_student_trains_without_with(tmp_path):
    student, teacher, seen = make_student(dropout=0.1).eval(), make_teacher(dropout=0.5).train(), []
    for model in (student, teacher):
        model.register_forward_hook(lambda module, inputs, output: seen.append((module is student, module.training)))
    make_distiller(tmp_path, student, teacher).train(sgd(student), make_batches(1), num_epochs=1)
    assert seen == [(False, False), (True, True)]
    assert not any(flags(student))
    assert all(flags(teacher))


def test_2_2_9_with_gives_the_distiller_and_the_modes_for_its_block(tmp_path):
    student, teacher = make_student().eval(), make_teacher()
    with make_distiller(tmp_path, student, teacher) as distiller:
        assert distiller.model_S is student
        assert all(flags(student))
        assert not any(flags(teacher))
        distiller.train(sgd(student), make_batches(1), num_epochs=1)
        assert all(flags(student))
    assert not any(flags(student))
    assert all(flags(teacher))


def test_2_2_9_the_teacher_stays_as_it_is(tmp_path):
    student, teacher = make_student(), make_teacher()
    before, seen = weights(teacher), []
    teacher.register_forward_hook(lambda *arguments: seen.append([p.requires_grad for p in teacher.parameters()]))
    make_distiller(tmp_path, student, teacher).train(sgd(student), make_batches(3), num_epochs=1)
    assert torch.equal(before, weights(teacher))
    assert seen == [[False] * 4] * 3
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_2_2_10_clipping_covers_the_projections(tmp_path, monkeypatch):
    norms, student = [], make_student()
    distiller = make_distiller(tmp_path, student, matches=[{**PROJECTED, "weight": 1000}])
    optimizer = sgd(student)
    step = optimizer.step
    trained = [*student.parameters(), *distiller.objective.parameters()]
    monkeypatch.setattr(optimizer, "step", lambda: norms.append(norm_of(trained)) or step())
    distiller.train(optimizer, make_batches(1), num_epochs=1, max_grad_norm=0.5)
    assert norms == [pytest.approx(0.5, rel=1e-4)]


def norm_of(parameters):
    return torch.stack([parameter.grad.norm() for parameter in parameters]).norm().item()


def test_2_2_10_minus_one_does_not_clip(tmp_path):
    ends = []
    for max_grad_norm in (None, -1, 0):
        student = make_student()
        make_distiller(tmp_path, student).train(
            sgd(student), make_batches(2), 1, max_grad_norm=max_grad_norm, overwrite=True
        )
        ends.append(weights(student))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_2_2_11_a_weight_schedule_begins_at_its_beginning_and_a_second_run_begins_again(tmp_path):
    student, seen = make_student(), []

    class Weights:
        def run_start(self, run):
            seen.append([])

        def step_end(self, run, step, report):
            seen[-1].append(round(report.terms["kd_loss"].weight, 12))

        def run_end(self, run, error):
            pass

    distiller = make_distiller(
        tmp_path,
        student,
        kd_loss_weight=0.5,
        kd_loss_weight_scheduler="linear_decay",
        options={"observers": [Weights()]},
    )
    for _ in range(2):
        distiller.train(sgd(student), make_batches(5), num_epochs=1, overwrite=True)
    assert seen == [[0.5, 0.4, 0.3, 0.2, 0.1]] * 2
    assert distiller.distill_config.kd_loss_weight == 0.5


def test_2_2_13_a_bare_tensor_batch_is_one_argument(tmp_path):
    student = make_student()
    make_distiller(tmp_path, student).train(sgd(student), [torch.zeros(2, 4).double()], num_epochs=1)


def test_2_2_18_a_hard_label_loss_of_weight_0_may_be_nan(tmp_path):
    student = make_student()
    distiller = make_distiller(
        tmp_path, student, adaptors=(None, lambda batch, outputs: {**outputs, "losses": torch.tensor(float("nan"))})
    )
    distiller.train(sgd(student), make_batches(2), num_epochs=1)
    assert torch.isfinite(weights(student)).all()


@pytest.mark.parametrize("nothing", [None, 5, "logits"])
def test_2_2_20_an_adaptor_that_returns_nothing_useful_is_an_error_that_names_what_to_return(tmp_path, nothing):
    student = make_student()
    distiller = make_distiller(tmp_path, student, adaptors=(None, lambda batch, outputs: nothing))
    with pytest.raises(
        OutputsError,
        match=r"^student: cannot read .*An adaptor must return the logits as one tensor, or a dict whose keys are among logits",
    ):
        distiller.train(sgd(student), make_batches(1), num_epochs=1)


def test_2_2_21_versions_are_compared_as_versions():
    """As text, 2.13 comes before 2.6."""
    assert DistillationConfig(plugins={"require": ["torch>=2.6"]}).plugins is not None


def test_2_3_no_value_leaves_the_device_between_logging_steps(tmp_path, monkeypatch):
    """Each term was read with .item() at each micro-batch; the engine reads the total once, on the CPU, where it costs nothing.

    The gradient of a step that logs or saves is read too: the last one here.
    """
    read, item, student = [], torch.Tensor.item, make_student()
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: read.append(1) or item(tensor))
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED], training={"logging_steps": 100})
    distiller.train(sgd(student), make_batches(5), num_epochs=1)
    assert len(read) == 5 + 1


class Stream(IterableDataset):
    def __iter__(self):
        return iter(make_batches(3))


def test_2_3_a_dataset_without_a_length_trains_by_steps_and_refuses_epochs_in_words(tmp_path):
    student = make_student()
    loader, distiller = DataLoader(Stream(), batch_size=None), make_distiller(tmp_path, student)
    assert distiller.train(sgd(student), loader, num_steps=7).step == 7
    with pytest.raises(RunError, match="needs a loader with a length"):
        distiller.train(sgd(student), loader, num_epochs=1)


@pytest.mark.parametrize("loader", [[], iter([])], ids=["list", "iterator"])
def test_2_3_an_empty_loader_does_not_hang(tmp_path, loader):
    student = make_student()
    with pytest.raises(RunError, match="dataloader is empty"):
        make_distiller(tmp_path, student).train(sgd(student), loader, num_steps=3)


def test_2_3_an_exhausted_generator_does_not_hang(tmp_path):
    student = make_student()
    with pytest.raises(RunError, match="exhausted"):
        make_distiller(tmp_path, student).train(sgd(student), (b for b in make_batches(2)), num_steps=3)


class Recurrent(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, packed):
        return self.head(self.rnn(packed)[1][0])


def test_2_3_a_packed_sequence_reaches_a_recurrent_student(tmp_path):
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    student = Recurrent(1)
    make_distiller(tmp_path, student, Recurrent(2)).train(sgd(student), [packed], num_epochs=1)


class Picture(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.maps, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    def forward(self, image):
        return self.head(self.maps(image).mean((2, 3)))


def test_2_3_a_feature_of_any_rank_is_matched_by_its_path(tmp_path):
    student, batches = Picture(1), [torch.randn(4, 1, 5, 5) for _ in range(2)]
    match = {"layer_T": "maps", "layer_S": "maps", "feature": "hidden", "loss": "hidden_mse", "weight": 1}
    distiller = make_distiller(tmp_path, student, Picture(2), matches=[match])
    report = distiller.train(sgd(student), batches, num_epochs=1).report
    assert report.terms["hidden_hidden_mse_maps_maps"].value > 0


def test_2_3_configs_are_not_changed_by_a_run(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, matches=[PROJECTED])
    before = distiller.distill_config.to_dict(), distiller.train_config.to_dict()
    distiller.train(sgd(student), make_batches(1), num_epochs=1)
    assert (distiller.distill_config.to_dict(), distiller.train_config.to_dict()) == before
