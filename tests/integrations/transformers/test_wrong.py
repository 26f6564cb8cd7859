"""Bad input is an error that names the field and the fix, before training starts."""

from __future__ import annotations

import pytest
import torch
from bert_run import BY_PATH, MATCH, config, make_student, make_teacher, make_trainer

from kdplug.errors import ConfigError, OutputsError, RunError
from kdplug.integrations.transformers.inputs import Columns


def refused(error, match, folder, *args, **options):
    with pytest.raises(error, match=match):
        make_trainer(folder, *args, **options)


def test_a_config_that_is_no_distillation_config(tmp_path):
    refused(
        ConfigError,
        r"distill_config: must be a DistillationConfig, got dict",
        tmp_path,
        distill_config={"temperature": 4},
    )


def test_a_teacher_that_is_no_model(tmp_path):
    refused(ConfigError, r"teacher\.1: must be a model, got str", tmp_path, teacher=[make_teacher(), "bert-base"])


def test_a_teacher_that_is_the_student(tmp_path):
    student = make_student()
    refused(RunError, "training the student would change the teacher", tmp_path, student, teacher=student)


def test_a_module_path_that_leads_nowhere(tmp_path):
    match = {**BY_PATH, "layer_S": "bert.encoder.layr.0"}
    refused(
        ConfigError,
        r"intermediate_matches\.0\.layer_S: .*Did you mean 'bert.encoder.layer.0'",
        tmp_path,
        distill_config=config(match),
    )


def test_a_normalization_that_does_not_exist(tmp_path):
    refused(ConfigError, "normalization: must be 'global' or 'micro_batch'", tmp_path, kd={"normalization": "token"})


def test_a_teacher_cache(tmp_path):
    refused(
        ConfigError, r"is_caching_logits: .*GeneralDistiller", tmp_path, distill_config=config(is_caching_logits=True)
    )


@pytest.mark.parametrize("weight", [{"share": 0.5}, 1])
def test_a_balancer(tmp_path, weight):
    terms = [{"loss": "kl", "weight": weight}]
    balancer = {} if isinstance(weight, dict) else {"balancer": "dwa"}
    message = r"balancer: only kdplug's own loop updates a balancer.*GeneralDistiller"
    refused(ConfigError, message, tmp_path, distill_config=config(terms=terms, **balancer))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_attention_of_a_model_whose_implementation_gives_none(tmp_path, side):
    student, teacher = make_student(), make_teacher()
    {"student": student, "teacher": teacher}[side].set_attn_implementation("sdpa")
    match = {**MATCH, "feature": "attention", "loss": "attention_mse", "proj": None}
    refused(
        ConfigError,
        rf"0\.feature: the {side} computes attention with 'sdpa'.*eager",
        tmp_path,
        student,
        teacher=teacher,
        distill_config=config(match),
    )


def test_a_match_that_reads_none_of_several_teachers(tmp_path):
    refused(
        ConfigError,
        r"intermediate_matches\.0\.teacher: must name one",
        tmp_path,
        teacher=[make_teacher(), make_teacher(5)],
    )


def test_several_visible_devices_in_one_process(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(RunError, match="torchrun"):
        trainer.train()


def test_a_projection_of_a_wrong_width_names_the_match(tmp_path):
    trainer = make_trainer(tmp_path, distill_config=config({**MATCH, "proj": ["linear", 5, 6]}))
    with pytest.raises(Exception, match=r"intermediate_matches\.0\.proj: .*4 wide"):
        trainer.train()


def test_no_labels_where_the_students_own_loss_is_wanted(tmp_path):
    rows = [{"input_ids": torch.arange(6), "attention_mask": torch.ones(6)} for _ in range(8)]
    trainer = make_trainer(tmp_path, rows=rows)
    with pytest.raises(OutputsError, match=r"hard_label_weight: is 0\.5, but the student returned no losses"):
        trainer.train()
    assert not hasattr(trainer.model, "distillation_objective")


def test_memory_that_is_shared_after_the_trainer_was_made(tmp_path):
    student, teacher = make_student(), make_teacher()
    trainer = make_trainer(tmp_path, student, teacher=teacher)
    student.classifier.bias = torch.nn.Parameter(teacher.classifier.bias.data)
    with pytest.raises(RunError, match=r"share trainable parameters \('classifier.bias'\)"):
        trainer.train()


def test_parameters_that_both_models_share(tmp_path):
    student, teacher = make_student(), make_teacher()
    teacher.bert.pooler = student.bert.pooler
    refused(RunError, r"share trainable parameters \(.* and 1 more\)", tmp_path, student, teacher=teacher)


def test_an_adaptor_that_reads_labels_that_the_teachers_part_of_the_batch_lacks(tmp_path):
    def collate(rows):
        whole = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**whole, "teacher": {name: whole[name] for name in ("input_ids", "attention_mask")}}

    options = {"data_collator": collate, "adaptor_T": lambda batch, outputs: {"logits_mask": batch["labels"] != -100}}
    trainer = make_trainer(tmp_path, distill_config=config(None), kd=options)
    with pytest.raises(RunError, match=r"adaptor_T: reads 'labels', but the mapping under 'teacher'.*collator add"):
        trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parameters_that_no_loss_trains_are_warned_of_once(tmp_path, accumulation):
    chosen = config(kd_loss_weight=0, hard_label_weight=0)
    trainer = make_trainer(tmp_path, distill_config=chosen, gradient_accumulation_steps=accumulation)
    with pytest.warns(UserWarning, match=r"^4 of .* no gradient in the first 3 step.*classifier.weight") as caught:
        trainer.train()
    assert len([one for one in caught if "no gradient" in str(one.message)]) == 1


def test_a_learning_rate_that_stays_0_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="learning rate has been 0 since step 1 of 3.* Is lr 0, or was the LambdaLR"):
        make_trainer(tmp_path, distill_config=config(None), learning_rate=0.0).train()


def test_extras_of_a_batch_reach_adaptors_and_no_model():
    class Takes(torch.nn.Module):
        def forward(self, **inputs): ...

    columns = Columns(Takes(), {"teacher": Takes()}, ["labels"])
    batch = {"input_ids": 1, "extras": {"weight": 2}, "labels": 3}
    assert columns.student(batch) == {"input_ids": 1, "labels": 3}
    assert columns.teacher("teacher", batch) == {"input_ids": 1}
    assert columns.seen(batch) == batch
