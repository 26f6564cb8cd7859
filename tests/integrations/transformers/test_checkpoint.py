"""What is saved, and going on from it."""

from __future__ import annotations

import pytest
import torch
from bert_run import MATCH, config, examples, make_student, make_teacher, make_trainer, weights
from transformers import AutoModelForSequenceClassification, TrainerCallback

from kdplug.config.distillation import DistillationConfig
from kdplug.errors import RunError

AUTO = {**MATCH, "proj": ["linear", "auto", "auto", {"lr": 0.03}]}
WAYS = {
    "plain": {},
    "adamw": {"optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "linear"},
    "accumulating": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "shuffled": {"train_sampling_strategy": "random"},
}


class Stop(TrainerCallback):
    """Ends training after step 3, as a kill between two steps does, but for the schedule's length."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def dropped():
    student = make_student()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return student


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_resumed_ends_where_an_uninterrupted_one_does(tmp_path, way):
    match = AUTO if way == "shuffled" else MATCH
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "distill_config": config(match), **WAYS[way]}
    whole = make_trainer(tmp_path / "whole", dropped(), **options)
    whole.train()
    make_trainer(tmp_path / "cut", dropped(), kd={"callbacks": [Stop()]}, **options).train()
    rest = make_trainer(tmp_path / "cut", dropped(), **options)
    with torch.no_grad():
        for parameter in rest.objective.parameters():
            parameter.zero_()
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 6
    assert torch.equal(weights(rest.model), weights(whole.model))
    assert torch.equal(weights(rest.objective), weights(whole.objective))


def test_what_save_model_writes_is_loaded_by_from_pretrained_with_nothing_left_over(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "out")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(weights(loaded), weights(trainer.model))


def test_a_callback_that_saves_the_student_on_the_way_saves_no_projection(tmp_path):
    class Saving(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.save_pretrained(tmp_path / "mine")

    make_trainer(tmp_path, kd={"callbacks": [Saving()]}).train()
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine", output_loading_info=True)
    assert not any(info.values())


def test_the_objective_is_next_to_the_student_with_its_config(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.save_model(tmp_path / "out")
    other = make_trainer(tmp_path)
    from kdplug.integrations.transformers.checkpoint import read_objective

    with torch.no_grad():
        next(other.objective.configured.groups())[0].weight.zero_()
    read_objective(other.objective, tmp_path / "out")
    assert torch.equal(weights(other.objective), weights(trainer.objective))
    assert DistillationConfig.from_json((tmp_path / "out/distillation.json").read_text()) == config()


def saved(folder, **more):
    """A run whose last checkpoint is that of step 3."""
    make_trainer(folder, save_strategy="steps", save_steps=3, **more).train()
    return folder / "checkpoint-3"


def test_a_checkpoint_without_an_objective_is_refused(tmp_path):
    folder = saved(tmp_path)
    (folder / "objective.safetensors").unlink()
    with pytest.raises(RunError, match=r"checkpoint-3 is damaged: objective\.safetensors is missing"):
        make_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_a_plain_trainer_is_refused(tmp_path):
    folder = saved(tmp_path)
    for name in ("objective.safetensors", "checksums.json", "kdplug-identity.json", "distillation.json"):
        (folder / name).unlink()
    with pytest.raises(RunError, match=r"contains no objective\.safetensors"):
        make_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)


def scaled_teacher():
    teacher = make_teacher()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(-5)
    return teacher


def other_rows():
    rows = examples(24)
    rows[17]["labels"] = (rows[17]["labels"] + 1) % 3
    return rows


CHANGES = {
    r"changed since: teacher\..*teacher\.0\.weights: changed": lambda: {"teacher": scaled_teacher()},
    r"changed since: data\..*data\.content \(24 examples compared\): changed": lambda: {"rows": other_rows()},
    r"distillation\.temperature: 2\.0 -> 4\.0": lambda: {"distill_config": config(temperature=4)},
    r"student\.adaptor: ": lambda: {"kd": {"adaptor_S": lambda batch, outputs: {"logits": -outputs.logits}}},
    r"distillation\.terms": lambda: {
        "distill_config": config({**MATCH, "proj": ["linear_relu", 4, 6]}, intermediate_matches=[])
    },
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, line):
    saved(tmp_path)
    with pytest.raises(RunError, match=f"(?s){line}"):
        make_trainer(tmp_path, max_steps=6, **CHANGES[line]()).train(resume_from_checkpoint=True)


def test_a_change_that_is_meant_is_let_through(tmp_path):
    saved(tmp_path)
    trainer = make_trainer(tmp_path, max_steps=6, rows=other_rows(), kd={"resume_changed": True})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("name", ["model.safetensors", "objective.safetensors", "kdplug-identity.json"])
def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path, name):
    flip(saved(tmp_path) / name)
    with pytest.raises(RunError, match=rf"checkpoint-3 is damaged: {name} does not match its checksum"):
        make_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path):
    class Damages(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            flip(tmp_path / f"checkpoint-{state.global_step}" / "model.safetensors")

    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    kd = {"callbacks": [Damages()], "eval_dataset": examples(8, seed=5)}
    with pytest.raises(RunError, match=r"checkpoint-3 is damaged: model\.safetensors"):
        make_trainer(tmp_path, load_best_model_at_end=True, kd=kd, **saving).train()


def test_a_checkpoint_that_is_written_again_has_the_checksums_of_the_new_files(tmp_path):
    saved(tmp_path)
    saved(tmp_path, learning_rate=0.2)
    make_trainer(tmp_path, max_steps=6, learning_rate=0.2).train(resume_from_checkpoint=True)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
