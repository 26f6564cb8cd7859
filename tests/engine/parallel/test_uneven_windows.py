"""Two processes whose steps have different numbers of micro-batches, whose evaluations differ, or that unfreeze a layer."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from small_run import by_hand, make_batches, make_student, weights

SCRIPT = """
import sys
from pathlib import Path
import torch
from small_run import *
from leave_group import leave_group
from kdplug import Evaluation, RunError

class Divided:
    \"\"\"A stream without a length that is already divided: three batches for one process and four for the other.\"\"\"

    _is_accelerate_prepared = True

    def __iter__(self):
        rank = torch.distributed.get_rank()
        return iter(make_batches(7)[:3] if rank == 0 else make_batches(7)[3:])

folder, found = Path(sys.argv[1]), {}
for normalization in ("global", "micro_batch"):
    student = make_student()
    training = {"gradient_accumulation_steps": 2, "normalization": normalization, "logging_steps": 1}
    distiller = make_distiller(folder / normalization, student, training=training)
    result = distiller.train(sgd(student), Divided(), num_steps=2)
    (term,) = result.report.terms.values()
    found[normalization] = {"weights": weights(student), "loss": result.report.total, "term": term.value}

rank, student, values = torch.distributed.get_rank(), make_student(), [1, 2, 3, 4]
evaluation = Evaluation(function=lambda model: {"score": values.pop(-1 if rank else 0)}, every=1, best="score", patience=1)
distiller = make_distiller(folder / "early", student, training={"ckpt_steps": 100})
result = distiller.train(sgd(student), Divided(), num_steps=4, evaluation=evaluation)
found["early"] = (result.step, result.stopped_early, result.best)
class Changes:
    def __init__(self, value):
        self.value = value

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        if step == 1:
            run.model.inner.requires_grad_(self.value)

    def run_end(self, run, error):
        pass

for value in (True, False):
    student = make_student()
    student.inner.requires_grad_(not value)
    distiller = make_distiller(folder / f"{value}", student, options={"observers": [Changes(value)]})
    try:
        distiller.train(sgd(student), Divided(), num_steps=3)
        found[value] = weights(student)
    except RunError as error:
        found[value] = str(error)
torch.save(found, folder / f"{rank}.pt")
leave_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two gloo processes had at the end."""
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, str(folder)], cwd=folder, env=environment, timeout=90, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("normalization", ["global", "micro_batch"])
def test_each_micro_batch_weighs_the_same_whatever_process_has_it(found, normalization):
    batches, student = make_batches(7), make_student()
    first, last = [*batches[:2], *batches[3:5]], [batches[2], *batches[5:]]
    by_hand(student, [first], 2)
    loss = sum(by_hand(deepcopy(student), [[batch]], 2)[0] for batch in last) / 3
    by_hand(student, [last], 2)
    ranks = [one[normalization] for one in found]
    assert all(torch.allclose(rank["weights"], weights(student), rtol=1e-6, atol=0) for rank in ranks)
    for name in ("loss", "term"):
        assert float(sum(rank[name] for rank in ranks) / 2) == pytest.approx(loss, rel=1e-6)


def test_the_main_process_decides_when_all_stop_and_which_student_is_the_best(found):
    assert found[0]["early"] == found[1]["early"]
    step, stopped_early, best = found[0]["early"]
    assert (step, stopped_early, best.name) == (4, False, "step-4")


def test_unfreezing_during_a_run_is_an_error_on_each_process_since_ddp_would_train_different_weights(found):
    assert found[0][True] == found[1][True]
    assert found[0][True].startswith(
        "the student's 'inner.weight' and 1 more were unfrozen during the run. DDP does not"
    )


def test_freezing_during_a_run_trains_the_same_weights_on_each_process(found):
    assert torch.equal(found[0][False], found[1][False])
