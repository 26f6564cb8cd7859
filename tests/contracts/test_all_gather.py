"""``kdplug.all_gather``: the identity in one process; in two, the gradient of one process on all examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from two_processes import run_in_two_processes

import kdplug

SCRIPT = """
import sys
import torch
from torch import nn
from leave_group import leave_group
import kdplug

folder = sys.argv[1]
torch.distributed.init_process_group("gloo")
rank, found = torch.distributed.get_rank(), {}
from test_all_gather import contrast, inputs, model

for name, cut in (("equal", 4), ("uneven", 3), ("nothing", 8)):
    net, x = model(), inputs()
    own = x[:cut] if rank == 0 else x[cut:]
    contrast(kdplug.all_gather(net(own))).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    for one in gradients:  # as DDP does
        torch.distributed.all_reduce(one)
        one /= 2
    found[name] = gradients
    anchors = net(own)
    loss = (anchors @ kdplug.all_gather(anchors).T).logsumexp(1).sum() * 2 / len(x)
    found[name, "anchors"] = torch.autograd.grad(loss, list(net.parameters()))
for name, value in (("ids", torch.arange(3) + 10 * rank), ("mask", torch.arange(3) % 2 == rank),
                    ("half", torch.full((2, 2), rank + 0.5, dtype=torch.bfloat16))):
    found[name] = kdplug.all_gather(value)
for name, value in (("shape", torch.zeros(2, 3 + rank)), ("dtype", torch.zeros(2, dtype=torch.int64 if rank else torch.float32)),
                    ("axes", torch.zeros(2) if rank else torch.zeros(2, 2)), ("scalar", torch.zeros(()))):
    try:
        kdplug.all_gather(value)
    except kdplug.ShapeError as error:
        found[name] = str(error)
torch.save(found, f"{folder}/{rank}.pt")
leave_group()
"""


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()


def inputs():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def contrast(features):
    """A loss that compares each example with all the others."""
    return (features @ features.T).logsumexp(1).mean() - features.square().sum(1).mean()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gather")
    run_in_two_processes(folder, SCRIPT, Path(__file__))
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_in_one_process_it_is_the_tensor_itself():
    tensor = torch.randn(2, requires_grad=True)
    assert kdplug.all_gather(tensor) is tensor


@pytest.mark.parametrize("cut", ["equal", "uneven", "nothing"])
def test_the_gradient_is_that_of_one_process_on_all_examples(found, cut):
    net = model()
    contrast(net(inputs())).backward()
    for ranks in found:
        for one, parameter in zip(ranks[cut], net.parameters(), strict=True):
            torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", ["equal", "uneven", "nothing"])
def test_so_it_is_where_each_process_has_its_own_anchors(found, cut):
    net = model()
    features = net(inputs())
    expected = torch.autograd.grad((features @ features.T).logsumexp(1).mean(), list(net.parameters()))
    for own, other, whole in zip(*(ranks[cut, "anchors"] for ranks in found), expected, strict=True):
        torch.testing.assert_close((own + other) / 2, whole, rtol=0, atol=1e-12)


def test_any_dtype_is_gathered_in_the_order_of_the_ranks(found):
    for ranks in found:
        assert ranks["ids"].tolist() == [0, 1, 2, 10, 11, 12]
        assert ranks["mask"].tolist() == [True, False, True, False, True, False]
        assert ranks["half"].tolist() == [[0.5, 0.5]] * 2 + [[1.5, 1.5]] * 2


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("shape", r"rank 0: float32 \[2, 3\], rank 1: float32 \[2, 4\]"),
        ("dtype", r"rank 0: float32 \[2\], rank 1: int64 \[2\]"),
        ("axes", r"rank 0: float32 \[2, 2\], rank 1: float32 \[2\]"),
        ("scalar", r"rank 0: float32 \[\], rank 1: float32 \[\]"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error_on_each_process(found, kind, shown):
    assert all(re.search(shown, ranks[kind]) for ranks in found)
