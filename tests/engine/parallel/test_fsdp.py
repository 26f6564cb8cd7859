"""FSDP2: two gloo processes that hold half of each parameter train what one process does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsdp_on_cpu
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, load_model
from small_run import make_batches, make_distiller, make_student, make_teacher, sgd
from token_run import TokenNet, make_data, match
from torch import nn
from torch.utils.data import DataLoader

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.checkpoint.weights import load_student
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.parallel.fsdp import blocks, shard_pair
from kdplug.engine.parallel.process import _check_fsdp, process
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError

SCRIPT = """
import os
import sys
from pathlib import Path
import fsdp_on_cpu

fsdp_on_cpu.enable()

import torch
from leave_group import leave_group
from safetensors.torch import save_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from test_fsdp import Killed, distill, half_frozen, in_bfloat16, tied
from kdplug.engine.finite import spoiled
from kdplug.engine.parallel.fsdp import gathered
from kdplug.errors import RunError

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
# each process takes every other batch, as accelerate divides them; the last window is ragged
batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [0, 5], [1, 7]]
for accumulation in (1, 3):
    if accumulation == 3:  # with blocks: each Linear is gathered alone
        os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Linear")
    models, seen, result = distill(folder / f"{accumulation}", batches, accumulation, seed=rank, shard_teacher=True)
    record = {"sharded": [all(isinstance(value, DTensor) for value in model.parameters()) for model in models],
              "weights": [dict(gathered(model).state_dict()) for model in models], "seen": seen, "step": result.step}
    try:
        distill(folder / f"{accumulation}-killed", batches, accumulation, seed=rank, killed_at=2)
    except Killed:
        distill(folder / f"{accumulation}-killed", batches, accumulation, seed=rank, resume="auto")
    torch.save(record, folder / f"{accumulation}-{rank}.pt")
try:  # rank 1 has other frozen weights, which are replaced by those of rank 0
    distill(folder / "frozen", batches, 1, student=half_frozen(1 + rank), killed_at=4)
except Killed:
    distill(folder / "frozen", batches, 1, student=half_frozen(1 + rank), resume="auto")
try:
    distill(folder / "frozen", batches, 1, student=half_frozen(2), resume="auto")
except RunError as error:
    other = str(error)
try:
    distill(folder / "again", batches, 1, student=models[0])
except RunError as error:
    again = str(error)
model = fully_shard(tied())
save_model(gathered(model), folder / f"tied-{rank}.safetensors")
said = []
for value in (1.0, float("nan")):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().fill_(value)
    if rank == 0:  # the loss of one process may be the only bad one
        said.append(spoiled(model.parameters()))
torch.save({"said": said, "again": again, "other": other, "bfloat16": gathered(in_bfloat16(folder / "bf16", 2)).state_dict()}, folder / f"more-{rank}.pt")
leave_group()
"""

JOINED = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 5, 1, 7]]


class Killed(Exception):
    """Ends a run in the middle."""


def tied():
    """Two layers of one weight."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def half_frozen(seed):
    """A student of which every other parameter is frozen."""
    student = TokenNet(4, seed=seed)
    for parameter in list(student.parameters())[::2]:
        parameter.requires_grad_(False)
    return student


def in_bfloat16(folder, size):
    """A student of float32 weights, trained under autocast in batches of ``size``."""
    student = make_student().float()
    distiller = make_distiller(folder, student, make_teacher().float(), training={"precision": "bf16"})
    distiller.train(sgd(student), DataLoader(torch.cat(make_batches(4)).float(), batch_size=size), num_epochs=1)
    return student


def distill(folder, batches, accumulation, *, seed=0, killed_at=None, student=None, **options):
    """Two epochs with momentum, clipping, a schedule and a look at the student after each step; it, its teacher, the looks."""
    torch.manual_seed(seed)
    resume, changed, seen = options.pop("resume", None), options.pop("changed", False), []
    student, teacher = student or TokenNet(4, seed=1), TokenNet(4, seed=2)
    options |= {"gradient_accumulation_steps": accumulation, "ckpt_frequency": 2, "keep_last": None}
    matches = [match("hidden_mse", proj=["linear", 4, 4]), match("attention_mse")]
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", logging_steps=1, **options),
        DistillationConfig(intermediate_matches=matches),
        teacher,
        student,
        show_progress=False,
    )
    distiller.objective.double()

    def look(model):
        return {"sum": model(*make_data()[:3])["logits"].sum().item()}

    def after_checkpoint(model, step):
        seen.append(look(model)["sum"])
        if step == killed_at:
            raise Killed

    result = distiller.train(
        sgd(student, lr=0.2, momentum=0.9),
        DataLoader(make_data(), batch_sampler=batches),
        num_epochs=2,
        max_grad_norm=0.3,
        callback=after_checkpoint,
        scheduler_class=torch.optim.lr_scheduler.StepLR,
        scheduler_args={"step_size": 2},
        evaluation=Evaluation(function=look, every=1),
        resume=resume,
        resume_changed=changed,
    )
    return (student, teacher), seen, result


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder in which two processes left what they had."""
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    done = subprocess.run(
        [*command, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module", params=[1, 3], ids=["each step", "accumulated"])
def accumulation(request):
    return request.param


@pytest.fixture(scope="module")
def alone(tmp_path_factory, accumulation):
    """The same in one process, whose batches are the two processes' batches joined."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, *distill(folder, JOINED, accumulation)


def test_sharded_processes_with_unequal_masks_train_what_one_does(sharded, alone, accumulation):
    _, (student, _), _, result = alone
    for rank in (0, 1):
        record = torch.load(sharded / f"{accumulation}-{rank}.pt")
        assert record["sharded"] == [True, True]
        assert record["step"] == result.step
        torch.testing.assert_close(record["weights"][0], dict(student.state_dict()), rtol=0, atol=1e-10)


def test_a_sharded_run_logs_the_losses_and_evaluations_of_one_process(sharded, alone, accumulation):
    ours = (sharded / f"{accumulation}" / "log.jsonl").read_text().splitlines()
    for line, other in zip(ours, (alone[0] / "log.jsonl").read_text().splitlines(), strict=True):
        assert json.loads(line) == pytest.approx(json.loads(other), rel=1e-10, abs=1e-12)


def test_a_callback_may_call_the_sharded_student(sharded, alone, accumulation):
    for rank in (0, 1):
        assert torch.load(sharded / f"{accumulation}-{rank}.pt")["seen"] == pytest.approx(alone[2], rel=1e-10)


def test_a_sharded_teacher_stays_what_it_was(sharded, accumulation):
    record = torch.load(sharded / f"{accumulation}-0.pt")
    torch.testing.assert_close(record["weights"][1], dict(TokenNet(4, seed=2).state_dict()), rtol=0, atol=0)


def test_a_checkpoint_of_a_sharded_run_is_a_whole_ordinary_file(sharded, alone, accumulation):
    _, _, _, result = alone
    step = f"step-{result.step}"
    student = TokenNet(4, seed=9)
    load_model(student, sharded / f"{accumulation}" / step / "student.safetensors")
    for name in ("student", "objective"):
        ours, other = (
            load_file(folder / step / f"{name}.safetensors") for folder in (sharded / f"{accumulation}", alone[0])
        )
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-10)


def test_a_sharded_run_that_was_killed_goes_on_to_the_same_bits(sharded, alone, accumulation):
    step = f"step-{alone[-1].step}"
    for name in ("student", "objective", "run"):
        ours, other = (
            load_file(sharded / f"{accumulation}{end}" / step / f"{name}.safetensors") for end in ("", "-killed")
        )
        torch.testing.assert_close(ours, other, rtol=0, atol=0)
    logs = [(sharded / f"{accumulation}{end}" / "log.jsonl").read_text() for end in ("", "-killed")]
    assert logs[0] == logs[1]


def test_a_run_in_one_process_goes_on_from_a_sharded_one(sharded, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(sharded / "1", folder)
    with pytest.warns(UserWarning, match="the number of processes changed"):
        (student, _), _, _ = distill(folder, JOINED, 1, resume=folder / "step-4", changed=True)
    torch.testing.assert_close(
        dict(student.state_dict()), load_file(sharded / "1" / "step-8" / "student.safetensors"), rtol=0, atol=1e-10
    )


def test_checkpoints_of_a_sharded_run_hold_no_frozen_weights(sharded, tmp_path):
    whole, _, _ = distill(tmp_path / "whole", JOINED, 1, student=half_frozen(1))
    trained = {name for name, parameter in half_frozen(1).named_parameters() if parameter.requires_grad}
    folder, student = sharded / "frozen" / "step-8", half_frozen(1)
    assert set(load_file(folder / "student_trainable.safetensors")) == trained
    load_student(student, folder)
    torch.testing.assert_close(dict(student.state_dict()), dict(whole[0].state_dict()), rtol=0, atol=1e-10)


def test_a_sharded_run_with_other_frozen_weights_is_an_error_on_every_process(sharded):
    for rank in (0, 1):
        assert "the student's frozen weight" in torch.load(sharded / f"more-{rank}.pt")["other"]


def test_tied_weights_are_stored_once(sharded):
    file = sharded / "tied-0.safetensors"
    assert set(load_file(file)) == {"0.weight", "0.bias", "1.bias"}
    model = tied()
    model[0].weight.data.zero_()
    load_model(model, file)
    assert torch.equal(model[1].weight, tied()[1].weight)


def test_a_sharded_student_in_bfloat16_trains_what_one_process_does(sharded, tmp_path):
    student = in_bfloat16(tmp_path, 4)
    found = torch.load(sharded / "more-0.pt")["bfloat16"]
    torch.testing.assert_close(found, dict(student.state_dict()), rtol=0, atol=2e-3)
    assert found["inner.weight"].dtype is torch.float32


def test_a_student_that_an_earlier_run_sharded_is_an_error(sharded):
    assert torch.load(sharded / "more-0.pt")["again"].startswith(
        "an earlier run has sharded the student. Build a new student"
    )


def test_a_block_is_what_transformers_says_or_an_element_of_a_list():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([nn.Linear(2, 2)])

    model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()]), "head": nn.Linear(2, 2)})
    assert blocks(model) == list(model["layers"])
    model._no_split_modules = ["Linear"]
    assert blocks(model) == [model["layers"][0].inner[0], model["layers"][1].inner[0], model["head"]]


def test_fsdp_that_was_asked_for_and_is_not_had_is_an_error(monkeypatch):
    """Facts of accelerate: with ``cpu=True`` a plugin for FSDP is dropped without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with (
        pytest.raises(RunError, match=r"FSDP was requested, but accelerate ignores it on cpu \(.* NO\)\. Start"),
        process("cpu", "fp32"),
    ):
        pass


@pytest.fixture
def enable(monkeypatch):
    """FSDP on the CPU for one test, in a single process."""
    monkeypatch.setattr(AcceleratorState, "__init__", AcceleratorState.__init__)
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "")
    return fsdp_on_cpu.enable


@pytest.mark.filterwarnings("ignore:FSDP1 is deprecated")
def test_a_loss_that_reads_the_students_parameters_is_refused(tmp_path, no_plugins):
    kdplug.losses.register("decay")(lambda student_parameters: sum(one.sum() for one in student_parameters.values()))
    term = {"loss": "decay", "reads_S": ["head:parameter.weight"]}
    student = make_student()
    distiller = make_distiller(tmp_path, student, terms=[term])
    pair = TrainingModule(student, None, distiller.objective)
    with pytest.raises(
        RunError, match=r"^terms\.0\.reads_S: local:decay reads parameters of the student, which FSDP shards"
    ):
        shard_pair(None, pair, sgd(student))


def test_fsdp1_is_refused(enable):
    enable(version=1)
    with (
        pytest.raises(RunError, match=r"FSDP1, which torch has deprecated. Set fsdp_version: 2"),
        process("cpu", "fp32"),
    ):
        pass


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "FSDP_ACTIVATION_CHECKPOINTING",
            "true",
            "would wrap the whole student. Disable activation checkpointing there",
        ),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "Set dynamo_backend to 'no'"),
    ],
)
def test_what_fsdp_would_do_to_the_whole_student_is_refused(enable, monkeypatch, variable, value, says):
    enable()
    monkeypatch.setenv(variable, value)
    with pytest.raises(RunError, match=says), process("cpu", "fp32"):
        pass


def test_a_sharded_teacher_without_fsdp_is_an_error(tmp_path):
    student = make_student()
    distiller = make_distiller(tmp_path, student, training={"shard_teacher": True})
    with pytest.raises(RunError, match="shard_teacher needs FSDP2"):
        distiller.train(sgd(student), make_batches(1), num_epochs=1)


def test_a_process_alone_may_ask_whether_its_weights_were_spoiled(sharded):
    before, after = torch.load(sharded / "more-0.pt")["said"]
    assert not before
    assert "the weights are no longer finite" in after


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_parallelism_that_splits_the_compared_tensors_is_refused(kind):
    enabled = {f"{one}_enabled": one == kind for one in ("tp", "cp", "sp")}
    accelerator = SimpleNamespace(is_fsdp2=True, parallelism_config=SimpleNamespace(**enabled))
    with pytest.raises(RunError, match=r"support only data parallelism\. Set tp_size, cp_size and sp_size to 1"):
        _check_fsdp(accelerator)
