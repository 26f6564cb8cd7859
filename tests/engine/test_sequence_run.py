"""Losses that declare ``whole_sequences`` through the engine: accumulation, processes, cache and resume change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sequence_run
import torch
from killer import Killed, Killer
from sequence_run import distill

from kdplug.host.active import isolated
from kdplug.host.metadata import scan

SCRIPT = """
import os
import sys
import torch
from leave_group import leave_group
from sequence_run import distill, register

register()
folder, factored = sys.argv[1], sys.argv[2] == "True"
found = distill(folder, batch_size=4, factored=factored, shuffle=False)
if os.environ["RANK"] == "0":
    torch.save(found, f"{folder}/weights.pt")
leave_group()
"""


@pytest.fixture(autouse=True)
def registered():
    with isolated(scan()):
        sequence_run.register()
        yield


def test_factors_train_what_dense_logits_train(tmp_path):
    dense, factored = (distill(tmp_path / str(one), batch_size=4, factored=one) for one in (False, True))
    torch.testing.assert_close(factored, dense, rtol=0, atol=1e-12)
    assert (dense - distill(tmp_path / "still", batch_size=4, epochs=1)).abs().max() > 1e-3


@pytest.mark.parametrize("factored", [False, True])
def test_micro_batches_train_what_one_batch_does(tmp_path, factored):
    whole = distill(tmp_path / "whole", batch_size=8, shuffle=False, factored=factored)
    split = {"gradient_accumulation_steps": 4}
    found = distill(tmp_path / "split", batch_size=2, shuffle=False, factored=factored, training=split)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(tmp_path, factored):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [*launch, str(tmp_path), str(factored)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = distill(tmp_path / "alone", batch_size=8, shuffle=False, factored=factored)
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("left", [False, True], ids=["padded at the end", "padded at the start"])
def test_cached_sequences_fit_batches_of_other_lengths(tmp_path, left):
    plain, cached = (
        distill(tmp_path / str(one), batch_size=4, left=left, epochs=3, is_caching_logits=one) for one in (False, True)
    )
    assert torch.isfinite(plain).all()
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("caching", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, caching):
    keys = {"batch_size": 4, "factored": True, "is_caching_logits": caching}
    whole = distill(tmp_path / "whole", **keys)
    with pytest.raises(Killed):
        distill(tmp_path / "killed", options={"observers": [Killer(5)]}, **keys)
    assert torch.equal(distill(tmp_path / "killed", train={"resume": "auto"}, **keys), whole)
