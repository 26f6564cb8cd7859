"""Runs whose matches go by module path, or by layer map."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small_run import MATCH, Net, make_batches, make_distiller, make_student, make_teacher, sgd, trained, weights
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from kdplug import (
    BasicDistiller,
    DistillationConfig,
    MultiTaskDistiller,
    MultiTeacherDistiller,
    TrainingConfig,
)
from kdplug.errors import ConfigError, OutputsError, RunError

AUTO = {"proj": ["linear", "auto", "auto"]}
BY_INDEX = {**MATCH, **AUTO}
# The hidden feature of small_run's nets is the output of their dropout, which is the identity here.
BY_PATH = {**BY_INDEX, "layer_T": "dropout", "layer_S": "dropout"}


class Bare(nn.Module):
    """small_run's net, but it returns its logits alone."""

    def __init__(self, net, recomputes=None):
        super().__init__()
        self.net, self.recomputes = net, recomputes

    def forward(self, x):
        if self.recomputes is None:
            return self.net(x)["logits"]
        return checkpoint(lambda x: self.net(x)["logits"], x, use_reentrant=self.recomputes)


def hooks(*models):
    return sum(len(module._forward_hooks) for model in models for module in model.modules())


def test_a_run_by_path_is_the_run_by_index_bit_for_bit(tmp_path):
    ends = [trained(tmp_path, make_student(), matches=[match]) for match in (BY_INDEX, BY_PATH)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("layers", [("dropout", 0), (0, "dropout"), ("net.dropout", "net.dropout")])
def test_one_side_may_go_by_path_and_models_need_no_adaptor(tmp_path, layers):
    wrapped = isinstance(layers[0], str) and layers[0].startswith("net")
    student, teacher = make_student(), make_teacher()
    if wrapped:
        student, teacher = Bare(student), Bare(teacher)
    match = {**BY_INDEX, "layer_S": layers[0], "layer_T": layers[1]}
    expected = trained(tmp_path, make_student(), matches=[BY_INDEX])
    assert torch.equal(trained(tmp_path, student, teacher, matches=[match]), expected)


def test_one_student_layer_in_several_matches_is_hooked_once_and_counts_in_each(tmp_path):
    several = [{**match, "layer_S": "dropout", "name": str(place)} for place, match in enumerate([BY_PATH] * 3)]
    student, seen = make_student(), []
    student.register_forward_hook(lambda *_: seen.append(len(student.dropout._forward_hooks)))
    ends = trained(tmp_path, student, matches=several)
    assert torch.equal(
        ends, trained(tmp_path, make_student(), matches=[{**BY_INDEX, "name": str(n)} for n in range(3)])
    )
    assert set(seen) == {1}


def test_no_hook_is_left_after_a_run(tmp_path):
    student, teacher = make_student(), make_teacher()
    trained(tmp_path, student, teacher, matches=[BY_PATH])
    assert hooks(student, teacher) == 0


def test_no_hook_is_left_after_an_error(tmp_path):
    student, teacher, batches = make_student(), make_teacher(), make_batches(3)
    batches[1][0, 0] = float("nan")
    with pytest.raises(RunError, match="step 2"):
        trained(tmp_path, student, teacher, batches, matches=[BY_PATH], training={"logging_steps": 1})
    assert hooks(student, teacher) == 0


def test_a_callback_that_evaluates_does_not_disturb_what_is_read(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, matches=[BY_PATH], training={"ckpt_frequency": 3})
    torch.manual_seed(0)
    distiller.train(sgd(student), make_batches(3), 2, callback=lambda model, step: model(make_batches(1)[0]))
    ends = torch.cat([weights(student), weights(distiller.objective)])
    assert torch.equal(ends, trained(tmp_path, make_student(), matches=[BY_INDEX]))


def test_a_second_run_reads_again(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, matches=[BY_PATH])
    for _ in range(2):
        result = distiller.train(sgd(student), make_batches(3), num_epochs=1, overwrite=True)
    assert result.report.terms["hidden_hidden_mse_dropout_dropout"].value > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_checkpointing_changes_nothing(tmp_path, accumulation):
    match = {**BY_PATH, "layer_S": "net.dropout"}
    options = {"matches": [match], "training": {"gradient_accumulation_steps": accumulation}}
    ends = [trained(tmp_path, Bare(make_student(), how), **options) for how in (None, False)]
    assert torch.equal(*ends)


def test_reentrant_checkpointing_is_refused_rather_than_trained_without_gradient(tmp_path):
    student = Bare(make_student(), recomputes=True)
    batches = [batch.requires_grad_() for batch in make_batches(2)]
    match = {**MATCH, "layer_S": "net.inner", "layer_T": "inner", "proj": ["linear", 3, 5]}
    with pytest.raises(RunError, match=r"^student: 'net\.inner' was computed without gradient.*use_reentrant=False"):
        trained(tmp_path, student, batches=batches, matches=[match])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_train_as_they_are(tmp_path, backend):
    torch.compiler.reset()
    expected = trained(tmp_path, Bare(make_student()), Bare(make_teacher()), matches=[{**BY_PATH, **_NESTED}])
    student, teacher = (torch.compile(Bare(make()), backend=backend) for make in (make_student, make_teacher))
    student(make_batches(1)[0])  # compiled before there are any hooks
    ends = trained(tmp_path, student, teacher, matches=[{**BY_PATH, **_NESTED}])
    torch.testing.assert_close(ends, expected, rtol=0, atol=1e-12)


_NESTED = {"layer_T": "net.dropout", "layer_S": "net.dropout"}


@pytest.mark.parametrize(
    ("key", "path", "says"),
    [
        ("layer_S", "iner", "layer_S: no module 'iner' in the student. Did you mean 'inner'?"),
        ("layer_T", "dropuot", "layer_T: no module 'dropuot' in the teacher. Did you mean 'dropout'?"),
    ],
)
def test_a_wrong_path_fails_when_the_distiller_is_made(tmp_path, key, path, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'intermediate_matches.0.{says}')}$"):
        make_distiller(tmp_path, make_student(), matches=[{**BY_PATH, key: path}])


def test_a_teacher_s_cache_in_the_batch_cannot_be_read_inside(tmp_path):
    batch = make_batches(1)[0]
    data = [{"teacher": None, "student": batch, "teacher_cache": make_teacher()(batch)}]
    with pytest.raises(OutputsError, match=r"layer_T: nothing was captured at 'dropout' in the teacher.*teacher_cache"):
        trained(tmp_path, make_student(), batches=data, matches=[BY_PATH])


def test_a_layer_map_is_settled_on_the_first_batch(tmp_path):
    keys = {"name": "uniform", "feature": "hidden", "loss": "hidden_mse", "weight": 0.5, "embeddings": False, **AUTO}
    student = make_student()
    distiller = make_distiller(tmp_path, student, layer_map=keys)
    torch.manual_seed(0)
    distiller.train(sgd(student), make_batches(3), num_epochs=2)
    ends = torch.cat([weights(student), weights(distiller.objective)])
    assert torch.equal(ends, trained(tmp_path, make_student(), matches=[BY_INDEX]))
    assert [term.name for term in distiller.objective.terms] == ["kd_loss", "hidden_hidden_mse_0_0"]


def test_a_layer_map_by_path_is_settled_when_the_distiller_is_made(tmp_path):
    keys = {"name": "uniform", "loss": "hidden_mse", "weight": 0.5, "layer_S": "drop*", "layer_T": "drop*", **AUTO}
    student = make_student()
    distiller = make_distiller(tmp_path, student, layer_map=keys)
    assert [term.name for term in distiller.objective.terms] == ["kd_loss", "hidden_hidden_mse_dropout_dropout"]
    ends = trained(tmp_path, make_student(), layer_map=keys)
    assert torch.equal(ends, trained(tmp_path, make_student(), matches=[BY_INDEX]))


def several(folder, make, models, student, **distillation):
    """A distiller of several teachers or tasks, in float64, on the CPU."""
    training = TrainingConfig(output_dir=str(folder), device="cpu")
    distiller = make(training, DistillationConfig(**distillation), models, student, show_progress=False)
    distiller.objective.double()
    return distiller


def test_several_teachers_are_read_by_path_each_for_its_own_matches(tmp_path):
    teachers, ends = {"one": make_teacher(), "other": Net(5, seed=9)}, []
    for layers in (BY_INDEX, BY_PATH):
        student = make_student()
        matches = [{**layers, "teacher": key} for key in teachers]
        distiller = several(tmp_path, MultiTeacherDistiller, teachers, student, intermediate_matches=matches)
        torch.manual_seed(0)
        distiller.train(sgd(student), make_batches(3), num_epochs=2, overwrite=True)
        ends.append(torch.cat([weights(student), weights(distiller.objective)]))
    assert torch.equal(*ends)
    assert hooks(student, *teachers.values()) == 0


def test_tasks_are_read_by_path_each_in_its_own_teacher(tmp_path):
    teachers, ends = {"a": make_teacher(), "b": Net(5, seed=9)}, []
    for layers in (BY_INDEX, BY_PATH):
        student = make_student()
        distiller = several(tmp_path, MultiTaskDistiller, teachers, student, intermediate_matches=[layers])
        torch.manual_seed(0)
        loaders = {task: DataLoader(torch.cat(make_batches(2)), batch_size=4) for task in teachers}
        distiller.train(sgd(student), loaders, num_steps=6, overwrite=True)
        ends.append(torch.cat([weights(student), weights(distiller.objective)]))
    assert torch.equal(*ends)
    assert hooks(student, *teachers.values()) == 0


@pytest.mark.parametrize(
    ("make", "models", "field"),
    [
        (MultiTeacherDistiller, lambda: [make_teacher()], "intermediate_matches.0.layer_T"),
        (MultiTaskDistiller, lambda: {"a": make_teacher()}, "a.intermediate_matches.0.layer_T"),
        (MultiTaskDistiller, lambda: {"a": [make_teacher()]}, "a.intermediate_matches.0.layer_T"),
    ],
)
def test_a_wrong_path_fails_when_a_distiller_of_several_is_made(tmp_path, make, models, field):
    matches = [{**BY_PATH, "layer_T": "dropuot"}]
    with pytest.raises(ConfigError, match=rf"^{field}: no module 'dropuot' in the teacher. Did you mean 'dropout'"):
        several(tmp_path, make, models(), make_student(), intermediate_matches=matches)


TWO_PROCESSES = """
import sys
import torch
from small_run import *
from torch.utils.data import DataLoader

folder, data = sys.argv[1], torch.cat(make_batches(6, size=4))
match = {**MATCH, "layer_T": "dropout", "layer_S": "inner:output", "proj": ["linear", 3, 5]}
torch.manual_seed(0)
student = make_student()
distiller = make_distiller(folder, student, matches=[match], training={"gradient_accumulation_steps": 2})
distiller.train(sgd(student), DataLoader(data, batch_size=int(sys.argv[2])), num_epochs=2, overwrite=True)
hooks = sum(len(module._forward_hooks) for module in student.modules())
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "alone"
torch.save([weights(student), weights(distiller.objective), hooks], f"{folder}/{rank}.pt")
"""


def test_two_processes_train_by_path_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for launch, size in ((two, "4"), ([], "8")):
        command = [sys.executable, *launch, "script.py", str(tmp_path), size]
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, timeout=150, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    alone, *both = (torch.load(tmp_path / f"{rank}.pt") for rank in ("alone", 0, 1))
    for student, objective, hooks in both:
        torch.testing.assert_close(student, alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(objective, alone[1], rtol=0, atol=1e-12)
        assert hooks == 0


def test_a_transformers_encoder_is_read_by_path_as_by_hidden_states(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 11, "num_labels": 3}
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make = transformers.BertForSequenceClassification
    teacher = make(transformers.BertConfig(**config, **options, num_hidden_layers=4))
    student = make(transformers.BertConfig(**config, **options, num_hidden_layers=2))
    layers = {"layer_S": "bert.encoder.layer.*", "layer_T": "bert.encoder.layer.*"}
    tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    ends = []
    for keys, recomputes in (({"feature": "hidden"}, False), (layers, False), (layers, True)):
        model = copy.deepcopy(student)
        if recomputes:
            with warnings.catch_warnings(action="ignore"):  # the method's name is on its way out
                model.gradient_checkpointing_enable({"use_reentrant": False})
        layer_map = {"name": "uniform", "loss": "hidden_mse", **keys}
        distiller = make_distiller(tmp_path, model, teacher, layer_map=layer_map)
        distiller.objective.float()
        extra = {} if "layer_S" in keys else {"output_hidden_states": True}
        distiller.train(sgd(model), [batch] * 3, num_epochs=1, **extra, overwrite=True)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[1], rtol=0, atol=1e-6)


def test_a_basic_distiller_refuses_layer_maps_as_it_does_matches(tmp_path):
    layer_map = {"name": "uniform", "feature": "hidden", "loss": "hidden_mse"}
    with pytest.raises(ConfigError, match=r"^layer_map: BasicDistiller does not support intermediate matches"):
        several(tmp_path, BasicDistiller, make_teacher(), make_student(), layer_map=layer_map)
