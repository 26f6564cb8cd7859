"""Which tensors have memory in common, and which sharing between student and teacher is fine."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from small_run import Net, make_batches, make_distiller, make_student, sgd, weights
from torch import nn

from kdplug.engine.teacher import check_apart, overlaps
from kdplug.errors import RunError

BIG = torch.arange(24.0).reshape(6, 4)
ARRAY = np.zeros(8, dtype=np.float32)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, of sparse and quantised tensors
    COO, CSR = torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()
    QUANTISED = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
JAGGED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
META = torch.empty(3, device="meta")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (BIG, BIG, True),
        (BIG.detach(), nn.Parameter(BIG.data), True),
        (BIG[:3], BIG[3:], False),
        (BIG[:3], BIG[2:], True),
        (BIG.t(), BIG[2], True),
        (BIG.view(torch.int32), BIG[5], True),
        (BIG, BIG.clone(), False),
        (torch.from_numpy(ARRAY), torch.from_numpy(ARRAY[4:]), True),
        (torch.from_numpy(ARRAY[:4]), torch.from_numpy(ARRAY[4:]), False),
        (torch.zeros(0), torch.zeros(0), False),
        (BIG[0, :0], BIG, False),
        (META, META[1:], False),
        (META, META, True),  # one object, of whatever kind
        (COO.values() if COO.is_coalesced() else COO._values(), COO, True),
        (CSR, CSR.values(), True),
        (QUANTISED[1:], QUANTISED, True),
        (JAGGED.values(), JAGGED, True),
        (nn.UninitializedParameter(), nn.UninitializedParameter(), False),
    ],
)
def test_memory_in_common_is_found_and_nothing_else(one, other, shared):
    assert bool(overlaps([("one", one)], [("far", torch.zeros(3)), ("other", other)])) is shared
    assert bool(overlaps([("other", other)], [("one", one), ("far", torch.zeros(3))])) is shared


def test_the_tensor_that_is_shared_is_named_among_many():
    theirs = [(f"part {row}", BIG[row]) for row in range(6)]
    assert overlaps([("near", torch.zeros(9)), ("ours", BIG[4])], theirs) == {"ours": "part 4"}


def test_a_shard_is_looked_for_where_it_lies():
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        shard = DTensor.from_local(BIG, init_device_mesh("cpu", (1,)), [Replicate()], run_check=False)
        assert overlaps([("ours", nn.Parameter(BIG.data))], [("theirs", shard)]) == {"ours": "theirs"}
        assert not overlaps([("ours", nn.Parameter(BIG.clone()))], [("theirs", shard)])
    finally:
        torch.distributed.destroy_process_group()


class Normed(Net):
    """With a batch norm, whose statistics train mode writes."""

    def __init__(self, width, seed):
        super().__init__(width, seed)
        self.norm = nn.BatchNorm1d(4).double()

    def forward(self, x):
        return super().forward(self.norm(x))


def test_a_frozen_base_that_both_share_is_fine_and_stays_as_it_is(tmp_path):
    student, teacher = Normed(3, seed=1), Normed(3, seed=2)
    student.norm = teacher.norm.requires_grad_(False)
    student.inner.load_state_dict(teacher.inner.state_dict(), assign=True)
    student.inner.requires_grad_(False)
    before, head = weights(teacher), weights(student.head)
    make_distiller(tmp_path, student, teacher).train(sgd(student.head), make_batches(4), num_epochs=2)
    assert torch.equal(weights(teacher), before)
    assert not torch.equal(weights(student.head), head)


def test_a_shared_module_stays_in_eval_mode_after_a_callback(tmp_path):
    student, teacher = Normed(3, seed=1), Normed(3, seed=2)
    student.norm = teacher.norm.requires_grad_(False)
    before = weights(teacher)
    distiller = make_distiller(tmp_path, student, teacher, training={"ckpt_frequency": 2})
    calls = []

    def callback(model, step):
        calls.append(step)
        model.eval()
        teacher.train()

    distiller.train(sgd(student), make_batches(4), num_epochs=1, callback=callback)
    assert calls == [2, 4]
    assert torch.equal(weights(teacher), before)


def test_statistics_in_shared_memory_would_be_written():
    student, teacher = Normed(3, seed=1), Normed(3, seed=2)
    student.norm.running_mean = teacher.norm.running_mean
    with pytest.raises(RunError, match=r"share buffers that batch norm updates in training \('norm.running_mean'\)"):
        check_apart(teacher, student, nn.Linear(1, 1))


def test_a_projection_of_the_teachers_own_layer_would_be_trained():
    teacher = Net(3, seed=2)
    with pytest.raises(RunError, match=r"share trainable parameters \('weight' and 1 more\).*'head.weight'"):
        check_apart(teacher, make_student(), teacher.head)
