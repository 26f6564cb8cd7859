"""Device, precision and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState, is_initialized
from small_run import AUTO, PROJECTED, make_batches, make_distiller, make_student, sgd, weights
from torch.utils.data import DataLoader

from kdplug.engine.parallel import process as process_module
from kdplug.engine.parallel.process import process, shard
from kdplug.errors import RunError

TWO_PROCESSES = """
import os
import sys
import warnings
from pathlib import Path
import torch
from small_run import *
from test_preemption import Teller
from torch.utils.data import DataLoader

folder, data = sys.argv[1], torch.cat(make_batches(10, size=4))

for accumulation in (1, 2):
    torch.manual_seed(0)
    student = make_student()
    training = {"gradient_accumulation_steps": accumulation, "ckpt_frequency": 2, "keep_last": None, "log_dir": f"{folder}/log-{accumulation}"}
    distiller = make_distiller(folder, student, matches=[PROJECTED], training=training)
    seen = []
    result = distiller.train(
        sgd(student), DataLoader(data, batch_size=4), num_epochs=2, max_grad_norm=0.05, overwrite=True,
        callback=lambda **c: seen.append(c),
    )
    rank = torch.distributed.get_rank()
    record = {"weights": weights(student), "objective": weights(distiller.objective), "steps": result.step,
              "loss": result.report.total, "files": len(result.checkpoints), "calls": [c["step"] for c in seen]}
    torch.save(record, f"{folder}/{accumulation}-{rank}.pt")

import kdplug

draws = []

@kdplug.losses.register("drawn")
def drawn(student_logits, teacher_logits, draw_seed):
    draws.append(draw_seed)
    return kdplug.LossSum((student_logits - teacher_logits).square().sum(), len(student_logits))

student = make_student()
distiller = make_distiller(f"{folder}/drawn", student, training={"gradient_accumulation_steps": 2}, kd_loss_type="drawn")
distiller.train(sgd(student), DataLoader(data, batch_size=4), num_epochs=1)
torch.save(draws, f"{folder}/draws-{rank}.pt")

student = make_student()
training = {"logging_steps": 2, "ckpt_steps": 100}
teller = Teller(1 if os.environ["RANK"] == "1" else 0)
distiller = make_distiller(f"{folder}/told", student, training=training, options={"observers": [teller]})
try:
    distiller.train(sgd(student), DataLoader(data, batch_size=4), num_steps=50)
except SystemExit as told:
    Path(f"{folder}/told-{rank}").write_text(str(told.code))

for examples in (22, 18):
    torch.manual_seed(0)
    student = make_student()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = make_distiller(f"{folder}/{examples}", student, matches=[PROJECTED]).train(
            sgd(student), DataLoader(data[:examples], batch_size=4), num_epochs=2
        )
    said = [str(one.message) for one in caught if "cannot divide" in str(one.message)]
    torch.save({"weights": weights(student), "steps": result.step, "said": said}, f"{folder}/{examples}-{rank}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two gloo processes had at the end of its run."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "checkpoint"), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, "script.py", str(folder)],
        cwd=folder,
        env=environment,
        timeout=150,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = {
        (accumulation, rank): torch.load(folder / f"{accumulation}-{rank}.pt")
        for accumulation in (1, 2)
        for rank in (0, 1)
    }
    records |= {(n, rank): torch.load(folder / f"{n}-{rank}.pt") for n in (22, 18) for rank in (0, 1)}
    return records | {"folder": folder}


def alone(folder, accumulation):
    """The same run in one process, whose batches are the two processes' batches joined."""
    torch.manual_seed(0)
    student = make_student()
    training = {"gradient_accumulation_steps": accumulation}
    distiller = make_distiller(folder, student, matches=[PROJECTED], training=training)
    loader = DataLoader(torch.cat(make_batches(10, size=4)), batch_size=8)
    result = distiller.train(sgd(student), loader, num_epochs=2, max_grad_norm=0.05)
    return student, distiller.objective, result


def test_all_processes_stop_together_where_one_of_them_stops(two_processes):
    folder = two_processes["folder"]
    assert [(folder / f"told-{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert [path.name for path in (folder / "told").glob("step-*")] == ["step-2"]


def test_each_process_draws_its_own(two_processes):
    mine, theirs = (torch.load(two_processes["folder"] / f"draws-{rank}.pt") for rank in (0, 1))
    assert len(set(mine)) == len(set(theirs)) == 5  # of 10 batches, each once though a pass counts first
    assert not set(mine) & set(theirs)


def test_a_thread_that_waits_for_the_interpreter_has_it_before_a_process_ends(monkeypatch):
    """A thread of gloo that has to let go of a tensor would otherwise abort the process, or wait with it for ever."""
    monkeypatch.setattr(process_module, "PartialState", lambda: SimpleNamespace(destroy_process_group=lambda: None))
    before = sys.getswitchinterval()
    told, done = threading.Event(), []
    thread = threading.Thread(target=lambda: done.append(told.wait()))
    thread.start()
    sys.setswitchinterval(60)  # nobody is made to give the interpreter away
    try:
        told.set()
        process_module._leave_group()
        assert done == [True]
    finally:
        sys.setswitchinterval(before)
        thread.join()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_what_one_does_on_the_same_global_batches(two_processes, tmp_path, accumulation):
    student, objective, result = alone(tmp_path, accumulation)
    for rank in (0, 1):
        record = two_processes[accumulation, rank]
        torch.testing.assert_close(record["weights"], weights(student), rtol=0, atol=1e-12)
        torch.testing.assert_close(record["objective"], weights(objective), rtol=0, atol=1e-12)
        assert record["steps"] == result.step


def test_two_processes_see_each_example_once_where_the_last_batch_is_short(two_processes, tmp_path):
    """accelerate would fill the last batch up with examples from the beginning of the pass."""
    torch.manual_seed(0)
    student = make_student()
    loader = DataLoader(torch.cat(make_batches(10, size=4))[:22], batch_size=8)
    result = make_distiller(tmp_path, student, matches=[PROJECTED]).train(sgd(student), loader, num_epochs=2)
    for rank in (0, 1):
        assert two_processes[22, rank]["steps"] == result.step
        assert two_processes[22, rank]["said"] == []
        torch.testing.assert_close(two_processes[22, rank]["weights"], weights(student), rtol=0, atol=1e-10)


def test_batches_that_cannot_be_shared_evenly_are_warned_of_once(two_processes):
    assert two_processes[18, 0]["steps"] == two_processes[18, 1]["steps"] == 6
    assert [message[:44] for message in two_processes[18, 0]["said"]] == [
        "2 processes cannot divide 5 batches evenly: "
    ]
    assert two_processes[18, 1]["said"] == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_that_two_processes_log_is_that_of_the_global_batch(two_processes, tmp_path, accumulation):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, _, result = alone(tmp_path, accumulation)
    logged = accumulator.EventAccumulator(str(two_processes["folder"] / f"log-{accumulation}")).Reload()
    last = logged.Scalars("scalar/total_loss")[-1]
    assert last.step == result.step
    assert last.value == pytest.approx(result.report.total.item(), rel=1e-6)


def test_one_process_writes_and_each_calls_back(two_processes):
    assert [two_processes[1, rank]["files"] for rank in (0, 1)] == [4, 0]
    assert [two_processes[1, rank]["calls"] for rank in (0, 1)] == [[2, 5, 7, 10]] * 2


def test_a_run_leaves_accelerate_as_it_was():
    assert not is_initialized()
    with process("cpu", "bf16") as accelerator:
        assert accelerator.mixed_precision == "bf16"
    assert not is_initialized()
    with process("cpu", "fp32") as accelerator:
        assert accelerator.mixed_precision == "no"


@pytest.fixture
def own_accelerator():
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_accelerator_of_the_users_own_survives_a_run(own_accelerator):
    with process("cpu", None) as accelerator:
        assert accelerator.mixed_precision == "bf16"
    assert own_accelerator.mixed_precision == "bf16"


def test_a_process_state_of_the_users_own_survives_a_run():
    state = PartialState(cpu=True)
    with process("cpu", "fp32"):
        pass
    assert state.num_processes == 1
    PartialState._reset_state()


def test_an_accelerator_of_another_precision_is_an_error(own_accelerator):
    with (
        pytest.raises(RunError, match="accelerate cannot set up the device or precision of this run"),
        process("cpu", "fp32"),
    ):
        pass


def test_fp16_where_it_would_do_nothing_is_an_error():
    """Defect 2.1.2: fp16 asked for apex; here it must not silently be float32."""
    with pytest.raises(RunError, match="fp16 has no effect on cpu"), process("cpu", "fp16"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must be missing")
def test_a_device_that_is_not_there_is_an_error():
    with (
        pytest.raises(RunError, match=r"^device: there is no device 'cuda': torch .*\. Use device: auto, or cpu$"),
        process("cuda", "fp32"),
    ):
        pass


def test_processes_that_would_each_train_alone_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with (
        pytest.raises(RunError, match=r"2 processes were launched, but accelerate uses 1: .* Start them with"),
        process("cpu-like", "fp32"),
    ):
        pass


class Pretended:
    """An accelerator as one of two processes sees it."""

    num_processes = 2


def test_in_a_single_process_the_loader_is_the_users_own():
    loader = DataLoader(range(4), shuffle=True)
    with process("cpu", "fp32") as accelerator:
        assert shard(accelerator, loader) is loader
        assert shard(accelerator, "abc") == "abc"


def test_several_processes_cannot_share_a_list():
    with pytest.raises(RunError, match="a list cannot be divided among 2 processes; pass a torch DataLoader"):
        shard(Pretended(), [1, 2])


def test_a_loader_that_is_divided_already_stays_as_it_is():
    from torch.utils.data.distributed import DistributedSampler

    loader = DataLoader(range(4), sampler=DistributedSampler(range(4), num_replicas=2, rank=0))
    assert shard(Pretended(), loader) is loader


def test_bfloat16_trains_and_its_loss_is_float32(tmp_path):
    student = make_student().float()
    teacher = make_student().float()
    distiller = make_distiller(tmp_path, student, teacher, matches=[AUTO], training={"precision": "bf16"})
    dtypes = []
    student.head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    result = distiller.train(sgd(student), [batch.float() for batch in make_batches(3)], num_epochs=1)
    assert dtypes[-1] is torch.bfloat16
    assert result.report.total.dtype is torch.float32
    assert student.head.weight.dtype is torch.float32
