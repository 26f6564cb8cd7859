"""What a ``DistillationTrainer`` trains, asks, logs and leaves alone."""

from __future__ import annotations

import bert_run
import pytest
import torch
from bert_run import (
    BY_PATH,
    MATCH,
    batch,
    bert,
    config,
    examples,
    logged,
    make_student,
    make_teacher,
    make_trainer,
    unlabelled,
    weights,
)
from transformers import BertForSequenceClassification, TrainerCallback

from kdplug import LossSum
from kdplug.config.distillation import DistillationConfig


def test_each_term_is_logged_with_the_training_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    kd, hard, match = (logged(trainer, name) for name in ("kd_loss", "hard_label_loss", "hidden_hidden_mse_-1_-1"))
    schedule = [0.5 * (1 - step / 3) for step in range(3)]
    totals = [k + 0.5 * h + w * m for k, h, m, w in zip(kd, hard, match, schedule, strict=True)]
    assert logged(trainer, "loss") == pytest.approx(totals, rel=1e-6)


def test_a_schedule_follows_the_share_of_max_steps_that_is_done(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(state.global_step / state.max_steps)

    trainer = make_trainer(tmp_path, kd={"callbacks": [Watch()]}, max_steps=4)
    asked, forward = [], trainer.objective.forward
    trainer.objective.forward = lambda *a, progress, **k: asked.append(progress) or forward(*a, progress=progress, **k)
    trainer.train()
    assert asked == seen == [0, 0.25, 0.5, 0.75]


def test_the_teacher_stays_in_eval_mode_frozen_and_as_it_was(tmp_path):
    teacher = make_teacher().train()
    before, modes = weights(teacher), []
    teacher.register_forward_hook(
        lambda module, *_: modes.append((module.training, any(p.requires_grad for p in module.parameters())))
    )
    make_trainer(tmp_path, teacher=teacher).train()
    assert {*modes} == {(False, False)}
    assert len(modes) == 3
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(weights(teacher), before)


def test_a_frozen_base_that_both_share_stays_in_eval_mode(tmp_path):
    """The Trainer puts the student in train mode at each step, and the base is a part of it."""
    student, teacher, modes = make_student(), bert(4, 2, seed=2), []
    student.bert.embeddings = teacher.bert.embeddings.requires_grad_(False)
    teacher.bert.embeddings.register_forward_hook(lambda module, *_: modes.append(module.training))
    before, head = weights(teacher), weights(student.classifier)
    make_trainer(tmp_path, student, teacher=teacher, distill_config=config(None), gradient_accumulation_steps=2).train()
    assert {*modes} == {False}
    assert torch.equal(weights(teacher), before)
    assert not torch.equal(weights(student.classifier), head)
    assert teacher.bert.embeddings.training


def test_the_student_is_after_training_what_it_was_but_for_its_weights(tmp_path):
    student = make_student()
    names, hooks = [*student.state_dict()], len(student._forward_hooks)
    make_trainer(tmp_path, student).train()
    assert [*student.state_dict()] == names
    assert len(student._forward_hooks) == hooks
    assert not student._state_dict_hooks
    assert not hasattr(student, "distillation_objective")


def test_a_projection_has_a_group_with_its_own_options(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.1)
    trainer.train()
    groups = [(group["lr"], group["weight_decay"], len(group["params"])) for group in trainer.optimizer.param_groups]
    assert groups[2:] == [(0.03, 0.1, 1), (0.03, 0.0, 1)]
    held = {id(parameter) for group in trainer.optimizer.param_groups[:2] for parameter in group["params"]}
    assert held == {id(parameter) for parameter in trainer.model.parameters()}


def test_clipping_counts_the_projection(tmp_path):
    norms = []
    for match in (MATCH, None):
        trainer = make_trainer(tmp_path, max_grad_norm=1e-3, max_steps=1, distill_config=config(match))
        trainer.train()
        norms += logged(trainer, "grad_norm")
    student = make_student()
    before = weights(student)
    trainer = make_trainer(tmp_path, student, max_grad_norm=1e-3, max_steps=1)
    first = weights(trainer.objective)
    trainer.train()
    moved = torch.cat([(weights(student) - before) / 0.1, (weights(trainer.objective) - first) / 0.03])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert norms[0] != norms[1]


def test_a_second_call_of_train_goes_on_with_the_same_groups(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    count, between = len(trainer.optimizer.param_groups), weights(trainer.objective)
    trainer.train()
    assert len(trainer.optimizer.param_groups) == count
    assert not torch.equal(weights(trainer.objective), between)


def test_a_users_optimizer_and_scheduler_learn_of_the_projection(tmp_path):
    student = make_student()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    make_trainer(tmp_path, student, kd={"optimizers": (optimizer, scheduler)}).train()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0125, 0.03 / 8, 0.03 / 8])


def test_features_by_module_path_train_what_those_by_index_do(tmp_path):
    one, other = make_student(), make_student()
    for student, match in ((one, MATCH), (other, BY_PATH)):
        make_trainer(tmp_path, student, distill_config=config(match)).train()
    assert torch.equal(weights(one), weights(other))


def test_widths_that_are_auto_are_made_before_the_optimizer_and_draw_nothing_from_the_data(tmp_path):
    order = {"train_sampling_strategy": "random"}
    seen = []
    for widths in ((4, 6), ("auto", "auto")):
        student = make_student()
        ids = []
        student.register_forward_pre_hook(
            lambda m, a, k, ids=ids: ids.append(k["input_ids"]) if m.training else None, with_kwargs=True
        )
        trainer = make_trainer(
            tmp_path, student, distill_config=config({**MATCH, "proj": ["linear", *widths]}), **order
        )
        trainer.train()
        assert next(trainer.objective.configured.groups())[0].weight.shape == (6, 4)
        seen.append(torch.stack(ids))
    assert torch.equal(*seen)


def test_a_layer_map_is_counted_from_the_first_examples(tmp_path):
    layer_map = {"name": "uniform", "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", "auto", "auto"]}
    trainer = make_trainer(tmp_path, distill_config=DistillationConfig(layer_map=layer_map))
    trainer.train()
    assert [(m.layer_S, m.layer_T) for m in trainer.objective.config.intermediate_matches][-1] == (1, 2)


def test_several_teachers_are_asked_and_a_match_reads_the_one_it_names(tmp_path):
    teachers = {"one": make_teacher(2), "other": make_teacher(5)}
    student, alone = make_student(), make_student()
    make_trainer(tmp_path, student, teacher=teachers, distill_config=config({**MATCH, "teacher": "other"})).train()
    make_trainer(tmp_path, alone, teacher=teachers, distill_config=config({**MATCH, "teacher": "one"})).train()
    assert not torch.equal(weights(student), weights(alone))


def test_a_list_of_one_teacher_is_that_teacher(tmp_path):
    one, other = make_student(), make_student()
    make_trainer(tmp_path, one).train()
    make_trainer(tmp_path, other, teacher=[make_teacher()]).train()
    assert torch.equal(weights(one), weights(other))


class WithoutTypes(BertForSequenceClassification):
    """A student that does not take a column which the teacher takes."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, output_hidden_states=None):
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, output_hidden_states=output_hidden_states
        )


def test_a_column_that_only_the_teacher_takes_reaches_it_and_not_the_student(tmp_path):
    student, teacher, seen = WithoutTypes(make_student().config).double(), make_teacher(), []
    teacher.register_forward_pre_hook(lambda m, a, k: seen.append(sorted(k)), with_kwargs=True)
    rows = [{**row, "token_type_ids": torch.ones(6, dtype=torch.long), "noise": 1} for row in examples(12)]
    trainer = make_trainer(tmp_path, student, teacher=teacher, rows=rows, kd={"eval_dataset": rows})
    trainer.train()
    assert seen[0] == ["attention_mask", "input_ids", "output_hidden_states", "token_type_ids"]
    assert trainer.predict([{k: v for k, v in row.items() if k != "labels"} for row in rows]).predictions.shape == (
        12,
        3,
    )


def test_a_collator_may_put_a_batch_for_the_teacher_alone(tmp_path):
    teacher, seen = make_teacher(), []
    teacher.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)

    def collate(rows):
        found = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        return {
            **found,
            "teacher": {"input_ids": found["input_ids"].flip(0), "attention_mask": found["attention_mask"]},
        }

    make_trainer(tmp_path, teacher=teacher, kd={"data_collator": collate}).train()
    assert torch.equal(seen[0], batch()["input_ids"].flip(0))


def test_an_adaptor_decides_what_is_read(tmp_path):
    seen = []

    def adaptor(inputs, outputs):
        seen.append(sorted(inputs))
        return {"logits": outputs.logits, "losses": outputs.loss * 2}

    trainer = make_trainer(tmp_path, distill_config=config(None), kd={"adaptor_S": adaptor})
    plain = make_trainer(tmp_path, distill_config=config(None))
    found = [one.train() and logged(one, "hard_label_loss")[0] for one in (trainer, plain)]
    assert found[0] == pytest.approx(2 * found[1])
    assert seen[0] == ["attention_mask", "input_ids", "labels"]


def test_label_smoothing_smooths_the_students_own_loss(tmp_path):
    student = make_student()
    logits = student(**batch()).logits.detach()
    trainer = make_trainer(tmp_path, student, label_smoothing_factor=0.3, max_steps=1)
    trainer.train()
    expected = torch.nn.functional.cross_entropy(logits, batch()["labels"], label_smoothing=0.3)
    assert logged(trainer, "hard_label_loss") == pytest.approx([expected.item()])


def test_compute_loss_func_is_the_students_own_loss(tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    found = []
    for more in ({"compute_loss_func": loss}, {}):
        student = make_student()
        make_trainer(tmp_path, student, kd=more, per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [2, 4])
def test_labels_that_do_not_count_are_no_items_however_the_batch_is_cut(tmp_path, cut):
    rows = [
        {**row, "labels": row["labels"] if place % 3 else torch.tensor(-100)} for place, row in enumerate(examples(12))
    ]
    found = []
    for parts in (1, cut):
        student = make_student()
        options = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        make_trainer(tmp_path, student, rows=rows, distill_config=config(hard_label_weight=2), **options).train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["selected", "sum"])
def test_the_losses_of_an_adaptor_count_the_same_however_the_batch_is_cut(tmp_path, form):
    def adaptor(inputs, outputs):
        kept = inputs["labels"] != -100
        losses = torch.nn.functional.cross_entropy(outputs.logits[kept], inputs["labels"][kept], reduction="none")
        return {"logits": outputs.logits, "losses": losses if form == "selected" else LossSum(losses.sum(), kept.sum())}

    found = []
    for parts in (1, 2):
        student = make_student()
        options = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        options |= {"rows": unlabelled(examples(12), 2), "distill_config": config(None), "kd": {"adaptor_S": adaptor}}
        make_trainer(tmp_path, student, **options).train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_a_scalar_of_an_adaptor_is_warned_of_where_micro_batches_are_pooled(tmp_path):
    def adaptor(inputs, outputs):
        return {"logits": outputs.logits, "losses": outputs.loss}

    trainer = make_trainer(
        tmp_path, distill_config=config(None), kd={"adaptor_S": adaptor}, gradient_accumulation_steps=2
    )
    with pytest.warns(UserWarning, match="hard_label_loss: the adaptor returned a scalar"):
        trainer.train()


def test_a_causal_student_counts_each_next_token_once_however_the_batch_is_cut(tmp_path):
    from transformers import BertLMHeadModel

    rows = [{**row, "labels": row["input_ids"].where(row["attention_mask"] > 0, -100)} for row in examples(12)]
    found = []
    for parts in (1, 2):
        student, teacher = (BertLMHeadModel(make_student(is_decoder=True).config) for _ in range(2))
        torch.manual_seed(0)
        for parameter in [*student.double().parameters(), *teacher.double().parameters()]:
            torch.nn.init.normal_(parameter, std=0.3)
        options = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        trainer = make_trainer(tmp_path, student, teacher=teacher, rows=rows, distill_config=config(None), **options)
        trainer.train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_a_ragged_last_step_is_divided_by_what_it_has(tmp_path):
    found = []
    for size, parts in ((4, 1), (2, 2)):
        student = make_student()
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        make_trainer(tmp_path, student, rows=examples(6), max_steps=-1, num_train_epochs=2, **options).train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_micro_batch_normalization_is_the_mean_of_means_and_differs(tmp_path):
    found = []
    for over in ("global", "micro_batch"):
        student = make_student()
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        make_trainer(tmp_path, student, kd={"normalization": over}, **options).train()
        found.append(weights(student))
    assert not torch.allclose(*found, rtol=0, atol=1e-8)


def test_without_masks_no_pass_is_spent_on_counting(tmp_path):
    calls = []
    rows = [{k: v for k, v in row.items() if k != "attention_mask"} for row in examples(24)]
    student = make_student()
    student.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    make_trainer(tmp_path, student, rows=rows, **options).train()
    assert calls == [True] * 6


def test_unlabelled_data_train_a_student_that_has_no_loss_of_its_own(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in examples(24)]
    trainer = make_trainer(tmp_path, rows=rows, distill_config=config(hard_label_weight=0))
    trainer.train()
    assert len(logged(trainer, "kd_loss")) == 3


def test_bf16_trains_with_finite_losses_computed_in_full_precision(tmp_path):
    trainer = make_trainer(tmp_path, make_student().float(), teacher=make_teacher().float(), bf16=True)
    trainer.objective.float()
    plain = make_trainer(tmp_path, make_student().float(), teacher=make_teacher().float())
    plain.objective.float()
    for one in (trainer, plain):
        one.train()
    assert logged(trainer, "loss") != logged(plain, "loss")
    assert logged(trainer, "loss") == pytest.approx(logged(plain, "loss"), rel=0.05)


def test_activation_checkpointing_changes_nothing(tmp_path):
    found = []
    for more in ({}, {"activation_checkpointing": True}):
        student = make_student()
        make_trainer(tmp_path, student, distill_config=config(BY_PATH), **more).train()
        found.append(weights(student))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_model_init_gets_a_new_objective_for_each_student(tmp_path):
    from kdplug.integrations.transformers import DistillationTrainer

    options = {"train_dataset": examples(24), "teacher": make_teacher(), "distill_config": config(BY_PATH)}
    arguments = bert_run.arguments(tmp_path, max_steps=2, per_device_train_batch_size=4)
    trainer = DistillationTrainer(None, arguments, model_init=lambda: make_student().float(), **options)
    trainer._teachers.model.float()
    first = trainer.objective
    trainer.train()
    assert trainer.objective is not first
    assert trainer._link.student is trainer.model


def test_the_teachers_adaptor_gets_the_labels_and_the_teacher_does_not(tmp_path):
    teacher, seen, given = make_teacher(), [], []
    teacher.register_forward_pre_hook(lambda m, args, kwargs: given.append({*kwargs}), with_kwargs=True)

    def adaptor(batch, outputs):
        seen.append(batch["labels"])
        return {"logits": outputs.logits}

    options = {"distill_config": config(None), "kd": {"adaptor_T": adaptor}, "label_smoothing_factor": 0.1}
    make_trainer(tmp_path, teacher=teacher, max_steps=1, **options).train()
    assert torch.equal(seen[-1], batch()["labels"])
    assert not any("labels" in names for names in given)
